"""What may be asked of a live recording, and that each wrong thing is one line."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from moeprof.capture.live_options import LiveOptions
from moeprof.errors import InputError


def test_all_defaults_but_the_output() -> None:
    options = LiveOptions.parse({"output": "t.moetrace"})
    assert options.model_dump() == {
        "output": "t.moetrace",
        "max_bytes": None,
        "rotate": False,
        "duration_s": None,
        "sample_requests": None,
        "seed": 0,
        "token_ids": False,
        "aggregate_steps": None,
        "request_names": "hashed",
        "force": False,
    }
    assert options.path.is_absolute()


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ([], "JSON object"),
        ({}, "output"),
        ({"output": ""}, "output"),
        ({"output": "a\0b"}, "zero byte"),
        ({"output": "t", "max_byte": 1}, "max_byte"),
        ({"output": "t", "max_bytes": "1GiB"}, "max_bytes"),
        ({"output": "t", "max_bytes": 3}, "max_bytes"),
        ({"output": "t", "rotate": True}, "rotate"),
        ({"output": "t", "duration_s": 0}, "duration_s"),
        ({"output": "t", "sample_requests": 1.5}, "sample_requests"),
        ({"output": "t", "aggregate_steps": 0}, "aggregate_steps"),
        ({"output": "t", "request_names": "all"}, "request_names"),
        ({"output": "t", "token_ids": 1}, "token_ids"),
        ({"output": "t", "seed": -1}, "seed"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(given: Any, says: str) -> None:
    with pytest.raises(InputError, match=says) as caught:
        LiveOptions.parse(given)
    assert "\n" not in str(caught.value)


def test_the_environment_says_the_same() -> None:
    wanted = {"max_bytes": 1 << 30, "rotate": True, "duration_s": 60, "request_names": "none"}
    given = {"MOEPROF_OUTPUT": "t", "MOEPROF_OPTIONS": json.dumps(wanted)}
    assert LiveOptions.from_environment(given) == LiveOptions.parse({"output": "t", **wanted})
    assert LiveOptions.from_environment({"MOEPROF_OPTIONS": "{}"}) is None


@pytest.mark.parametrize("text", ["{", "[]", '{"output": "u"}', '{"nonsense": 1}'])
def test_a_broken_environment_is_one_line(text: str) -> None:
    with pytest.raises(InputError) as caught:
        LiveOptions.from_environment({"MOEPROF_OUTPUT": "t", "MOEPROF_OPTIONS": text})
    assert "\n" not in str(caught.value)


def test_ranks_share_the_size() -> None:
    options = LiveOptions.parse({"output": "t", "max_bytes": 64 << 20, "seed": 7})
    assert options.limits(4).max_bytes == 16 << 20
    assert options.limits().seed == 7
    with pytest.raises(InputError, match="max_bytes"):
        options.limits(100)


def test_importing_the_folder_is_light() -> None:
    code = (
        "import sys, moeprof.capture;"
        "heavy = {'numpy', 'pyarrow', 'pydantic', 'torch'} & set(sys.modules);"
        "sys.exit(', '.join(sorted(heavy)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
