"""The driver: a model folder and a prompt file to a trace."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moeprof.capture import Prompt, capture_transformers
from moeprof.errors import InputError, MoeprofError
from moeprof.trace import Phase, open_trace
from moeprof.trace.streams import StreamWriter

from .conftest import EOS, PAD, Oracle, spread_routers, tiny_m3

PROMPTS = '{"text": "w5 w6 w7", "label": "a"}\n{"text": "w8"}\n{"text": "w9 w9", "label": "b"}\n'


@pytest.fixture(scope="module")
def folder(torch: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny M3 and a tokenizer of whole words w0 to w63, saved as any model is."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    path = tmp_path_factory.mktemp("models") / "tiny"
    torch.manual_seed(0)
    spread_routers(tiny_m3()).save_pretrained(path)
    words = Tokenizer(WordLevel({f"w{i}": i for i in range(64)}, unk_token="w3"))
    words.pre_tokenizer = WhitespaceSplit()
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=words, eos_token=f"w{EOS}", pad_token=f"w{PAD}"
    )
    wrapped.save_pretrained(path)
    return path


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    path.write_text(PROMPTS)
    return path


def test_a_file_of_prompts_becomes_a_trace(folder: Path, prompts: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    result = capture_transformers(
        folder,
        prompts,
        tmp_path / "t.moetrace",
        batch_size=2,
        max_new_tokens=4,
        weights=True,
        token_ids=True,
        device="cpu",
        progress=lambda done, of: seen.append((done, of)),
    )
    trace = open_trace(tmp_path / "t.moetrace")
    assert seen == [(1, 3), (2, 3), (3, 3)]  # M3 takes no padding: unequal prompts run alone
    assert (result.prefill_tokens, result.dropped, result.requests) == (6, 0, 3)
    assert result.tokens == trace.tokens == 6 + result.decode_tokens
    assert result.model == "tiny"
    assert [r.label for r in trace.requests] == ["a", None, "b"]
    assert [r.prompt_tokens for r in trace.requests] == [3, 1, 2]
    prompt = trace.phase == Phase.PREFILL
    assert trace.token_id[prompt].tolist() == [5, 6, 7, 8, 9, 9]
    assert result.to_dict()["tokens"] == result.tokens


def test_prompts_of_equal_length_share_a_batch(folder: Path, tmp_path: Path) -> None:
    texts = [Prompt("w5 w6"), Prompt("w7 w8"), Prompt("w9 w9"), Prompt("w9"), Prompt("w4")]
    path = tmp_path / "t.moetrace"
    capture_transformers(folder, texts, path, batch_size=2, max_new_tokens=1, device="cpu")
    trace = open_trace(path)
    together = [trace.request[trace.step == step].tolist() for step in np.unique(trace.step)]
    assert [sorted(set(requests)) for requests in together] == [[0, 1], [2], [3, 4]]


def test_same_seed_same_tokens(folder: Path, prompts: Path, tmp_path: Path, torch: Any) -> None:
    def tokens(seed: int) -> list[int]:
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.moetrace"
        options: dict[str, Any] = {"sample": True, "seed": seed, "token_ids": True}
        capture_transformers(folder, prompts, path, max_new_tokens=8, device="cpu", **options)
        return list(open_trace(path).token_id.tolist())

    state = torch.random.get_rng_state()
    assert tokens(1) == tokens(1) != tokens(2)
    assert torch.equal(state, torch.random.get_rng_state())


def test_it_records_what_the_router_returned(folder: Path, tmp_path: Path, torch: Any) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder)
    path = tmp_path / "t.moetrace"
    text = [Prompt("w5 w6 w7")]
    capture_transformers(folder, text, path, max_new_tokens=5, token_ids=True, device="cpu")
    trace = open_trace(path)
    with Oracle(model) as oracle:
        model(torch.from_numpy(trace.token_id.astype(np.int64))[None])
    for layer in trace.layers:  # the whole sequence at once: rounding may swap a tie
        expected = np.sort(oracle.calls[layer][0][1])
        assert (np.sort(trace.experts(layer)) == expected).mean() > 0.9


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0, it must be at least 1"),
        ({"max_new_tokens": -1}, "max_new_tokens is -1"),
        ({"dtype": "fp8"}, "dtype 'fp8' is not one of auto"),
        ({"prompts": []}, "there are no prompts"),
        ({"prompts": "no.txt"}, "no.txt: cannot be read"),
        ({"model_path": "no/such/folder"}, "no such folder, and not a hub id"),
        ({"max_new_tokens": 126}, r"prompts.jsonl:1: 3 tokens and 126 new ones exceed .* 128"),
    ],
)
def test_what_cannot_work_is_said(
    options: dict[str, Any], message: str, folder: Path, prompts: Path, tmp_path: Path
) -> None:
    given = {"model_path": folder, "prompts": prompts, "output": tmp_path / "t", **options}
    with pytest.raises(InputError, match=message):
        capture_transformers(**given, device="cpu")
    assert not (tmp_path / "t").exists()


def test_an_output_that_exists_is_refused_before_the_model_is_loaded(
    prompts: Path, tmp_path: Path
) -> None:
    for force, message in ((False, "without --force"), (True, "is not a trace")):
        with pytest.raises(InputError, match=message):
            capture_transformers("no model", prompts, tmp_path, force=force)


def test_a_folder_that_holds_no_moe_model_is_named(
    folder: Path, prompts: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty: cannot be loaded on cpu: "):
        capture_transformers(tmp_path / "empty", prompts, tmp_path / "t")


def test_a_recording_that_broke_off_is_an_error(
    folder: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(StreamWriter, "append", full)
    with pytest.raises(MoeprofError, match="No space left on device; 0 tokens were recorded"):
        capture_transformers(folder, prompts, tmp_path / "t", device="cpu", max_new_tokens=3)


def test_limits_are_those_of_record(folder: Path, prompts: Path, tmp_path: Path) -> None:
    result = capture_transformers(
        folder,
        prompts,
        tmp_path / "t.moetrace",
        max_new_tokens=4,
        device="cpu",
        max_bytes=1 << 20,
        sample_requests=0.5,
        seed=3,
    )
    trace = open_trace(tmp_path / "t.moetrace")
    assert (result.tokens, result.sampled_out) == (trace.tokens, trace.manifest.tokens_sampled_out)
    assert result.tokens + result.sampled_out == 6 + 3 * 3 and result.dropped == 0
    assert len(trace.requests) + trace.manifest.requests_sampled_out == 3
