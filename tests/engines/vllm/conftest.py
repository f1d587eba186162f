"""These tests run a real vLLM: by `bash tests/engines/vllm/run`, not in the ordinary run."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.engines.vllm.server import PYTHON
from tests.engines.vllm.tiny_model import write_tiny_model

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Outside of the documented command, skip."""
    skip = pytest.mark.skip(reason="needs vLLM on the CPU: bash tests/engines/vllm/run")
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.engine)
            if "MOEPROF_VLLM_PYTHON" not in os.environ:
                item.add_marker(skip)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint that all tests serve, written by this interpreter."""
    subprocess.run([PYTHON, "-c", "import vllm"], check=True, capture_output=True)
    return write_tiny_model(tmp_path_factory.mktemp("checkpoint") / "tiny")
