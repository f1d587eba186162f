"""A user's script under `capture run`: it runs as without us, and every MoE model is recorded."""

from __future__ import annotations

import copy
import json
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moeprof.capture.importing import when_imported
from moeprof.capture.transformers.script.capture import Options, ScriptModels, names_experts
from moeprof.capture.transformers.script.launch import Launch, numbered
from moeprof.capture.transformers.script.watching import ModelWatch
from moeprof.trace import open_trace, validate_trace

from .conftest import FAMILIES, assert_untouched

ROOT = Path(__file__).parents[2]
RUN = [sys.executable, "-m", "moeprof", "capture", "run"]
MODEL = """
import os, sys, time
import torch
torch.set_num_threads(1)
torch.manual_seed(0)
from tests.capture.conftest import FAMILIES
model = FAMILIES["qwen3"]().eval()
ids = torch.arange(5, 15)[None]
settings = dict(max_new_tokens=8, min_new_tokens=8, do_sample=False)
"""
ENDLESS = (
    MODEL
    + """
routed = 0
while True:
    model.generate(ids, **settings)
    routed += 17
    print(routed, flush=True)
"""
)
RANKS = (
    MODEL
    + """
import signal
import torch.distributed as dist
dist.init_process_group("gloo")
rank = dist.get_rank()
parallel = torch.nn.parallel.DistributedDataParallel(model)
with torch.no_grad():
    for _ in range(3):
        parallel(torch.randint(3, 60, (2 + rank, 10)))
dist.barrier()
if "kill" in sys.argv and rank == 1:
    time.sleep(1.5)  # what is older than that is on disk
    os.kill(os.getpid(), signal.SIGKILL)
dist.barrier()
dist.destroy_process_group()
"""
)


@pytest.fixture
def script(tmp_path: Path) -> Callable[[str], Path]:
    """A function that writes a script and returns its path."""

    def write(code: str) -> Path:
        path = tmp_path / "script.py"
        path.write_text(textwrap.dedent(code))
        return path

    return write


def environment() -> dict[str, str]:
    mine = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    return {**os.environ, **mine}


def run(*command: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(word) for word in command],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=environment(),
        timeout=240,
    )


# The script, as Python would run it

ABOUT = """
import atexit, inspect, pickle, sys, threading, time

class Mine:
    pass

def later():
    time.sleep(0.3)
    print("thread done")

if __name__ == "__main__":
    atexit.register(print, "at exit")
    print(sys.argv, __file__, __name__, __package__, __spec__, sys.path[0], sys.modules["__main__"])
    print(type(pickle.loads(pickle.dumps(Mine()))), inspect.getsource(Mine))
    print(sorted(set(sys.modules) & {"torch", "transformers"}))
    threading.Thread(target=later).start()
"""


def test_a_script_sees_what_python_would_show_it(
    script: Callable[[str], Path], tmp_path: Path
) -> None:
    path = script(ABOUT)
    plain = run(sys.executable, path.name, "--x", "-o", "y", cwd=tmp_path)
    ours = run(*RUN, "-o", "t.moetrace", path.name, "--x", "-o", "y", cwd=tmp_path)
    assert plain.stdout.count("\n") == 7 and plain.returncode == 0
    assert (ours.stdout, ours.returncode) == (plain.stdout, 0)
    assert "nothing was recorded: no model ran" in ours.stderr
    assert not (tmp_path / "t.moetrace").exists()


@pytest.mark.parametrize(
    "code",
    [
        "import sys\nsys.exit(3)",
        "import sys\nsys.exit('what went wrong')",
        "raise SystemExit",
        "def f():\n    return 1 / 0\nf()",
        "try:\n    1 / 0\nexcept ZeroDivisionError:\n    raise KeyError('x')",
        "x = = 1",
        "raise KeyboardInterrupt",
    ],
)
def test_a_script_ends_as_under_python(
    code: str, script: Callable[[str], Path], tmp_path: Path
) -> None:
    path = script(code)
    plain = run(sys.executable, path, cwd=tmp_path)
    ours = run(*RUN, path, cwd=tmp_path)
    expected = 130 if "Interrupt" in code else plain.returncode
    shown = ours.stderr.replace("moeprof: interrupted\n", "").rpartition("moeprof: nothing")[0]
    assert (shown, ours.returncode) == (plain.stderr, expected)


def test_what_cannot_be_is_said_before_the_script_starts(
    script: Callable[[str], Path], tmp_path: Path
) -> None:
    path = script("print('ran')")
    (tmp_path / "old.moetrace").mkdir()
    for options, words in (
        (["-o", "old.moetrace"], "--force"),
        (["--max-size", "ten"], "--max-size 'ten'"),
        (["--duration", "1 week"], "--duration '1 week'"),
        (["--rotate"], "--max-size"),
        (["--max-size", "10kB"], "at least"),
        (["--sample-requests", "2"], "sample_requests"),
    ):
        ended = run(*RUN, *options, path, cwd=tmp_path)
        assert (ended.returncode, ended.stdout) == (2, "")
        assert words in ended.stderr and ended.stderr.count("\n") == 1


# Its models


def test_models_of_a_script_each_have_a_trace(
    script: Callable[[str], Path], tmp_path: Path
) -> None:
    path = script(
        MODEL
        + """
from transformers import AutoModelForCausalLM
FAMILIES["mixtral"]().save_pretrained("saved")
print(model.generate(ids, **settings).tolist())
loaded = AutoModelForCausalLM.from_pretrained("saved")
loaded(ids)
FAMILIES["llama"]()(ids)
never = FAMILIES["m3"]()
os.chdir("/")
sys.exit(5)
"""
    )
    plain = run(sys.executable, path, cwd=tmp_path)
    ours = run(*RUN, "--json", "-o", "out/t.moetrace", path, cwd=tmp_path)
    assert plain.returncode == ours.returncode == 5
    assert plain.stdout in ours.stderr  # with --json stdout is the document's
    document = json.loads(ours.stdout)
    result = document["result"]
    assert document["schema"] == "moeprof.capture.run/1"
    assert document["inputs"][0]["path"] == str(path)
    counts = {"tokens": 27, "dropped": 0, "prefill_tokens": 20, "decode_tokens": 7, "exit_code": 5}
    assert counts.items() <= result.items()
    names = [(Path(trace["path"]).name, trace["tokens"]) for trace in result["traces"]]
    assert names == [("t.moetrace", 17), ("t-2.moetrace", 10)]
    assert not validate_trace(tmp_path / "out" / "t.moetrace").problems
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["t-2.moetrace", "t.moetrace"]


def test_processes_that_a_script_forks_do_not_touch_its_trace(
    script: Callable[[str], Path], tmp_path: Path
) -> None:
    path = script(
        MODEL
        + """
import multiprocessing
with multiprocessing.get_context("fork").Pool(2) as pool:  # is ended by SIGTERM
    print(pool.map(abs, [-1, 2]))
model(ids)
child = os.fork()
model(ids)
if child == 0:
    sys.exit(7)
print(os.waitstatus_to_exitcode(os.wait()[1]))
model(ids)
"""
    )
    ended = run(*RUN, "-o", "t.moetrace", path, cwd=tmp_path)
    assert (ended.stdout, ended.returncode) == ("[1, 2]\n7\n", 0)
    assert ended.stderr.count("t.moetrace: 30 tokens of 3 requests") == 1
    assert not validate_trace(tmp_path / "t.moetrace").problems


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_script_and_leaves_a_whole_trace(
    number: signal.Signals, script: Callable[[str], Path], tmp_path: Path
) -> None:
    process = subprocess.Popen(
        [*RUN, "-o", "t.moetrace", str(script(ENDLESS))],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env=environment(),
    )
    assert process.stdout is not None
    for _ in range(20):
        last = int(process.stdout.readline())
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    last = int(out.split()[-1]) if out.split() else last
    assert process.returncode == 128 + number
    assert ("KeyboardInterrupt" in err) == (number == signal.SIGINT)
    trace = open_trace(tmp_path / "t.moetrace")
    assert trace.manifest.complete and last <= trace.tokens <= last + 17
    assert not validate_trace(tmp_path / "t.moetrace").problems


def torchrun(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    return run(*launcher, "-m", "moeprof", "capture", "run", *arguments, cwd=cwd)


def test_two_ranks_write_one_trace(
    torch: Any, script: Callable[[str], Path], tmp_path: Path
) -> None:
    ended = torchrun("-o", "t.moetrace", script(RANKS), cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr.count("150 tokens of 15 requests") == 1
    trace = open_trace(tmp_path / "t.moetrace")
    assert trace.tokens == 3 * 10 * (2 + 3) and trace.manifest.complete
    assert np.unique(trace.request).tolist() == list(range(15))
    assert np.unique(trace.step).tolist() == list(range(6))
    assert not validate_trace(tmp_path / "t.moetrace").problems
    assert [p.name for p in tmp_path.glob("*.moetrace*")] == ["t.moetrace"]
    assert not list(tmp_path.glob(".*.parts"))


def test_of_a_rank_that_was_killed_the_rest_is_merged(
    torch: Any, script: Callable[[str], Path], tmp_path: Path
) -> None:
    ended = torchrun("-o", "t.moetrace", script(RANKS), "kill", cwd=tmp_path)
    assert ended.returncode != 0
    assert "local rank 1 ended early" in ended.stderr
    trace = open_trace(tmp_path / "t.moetrace")
    assert trace.tokens == 150 and not trace.manifest.complete


def test_what_torchrun_says() -> None:
    said = {"RANK": "5", "LOCAL_RANK": "1", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4"}
    assert Launch.from_environment({}) is None
    assert Launch.from_environment({"RANK": "0", "WORLD_SIZE": "1"}) is None
    assert Launch.from_environment(said) == Launch(5, 1, 4)
    second = Launch.from_environment({**said, "GROUP_RANK": "1", "TORCHELASTIC_RESTART_COUNT": "2"})
    assert second is not None
    assert second.output(Path("a/t.moetrace")) == Path("a/t-node1-restart2.moetrace")
    assert numbered(Path("t.moetrace"), 1) == Path("t.moetrace")
    assert numbered(Path("t.moetrace"), 3) == Path("t-3.moetrace")


# Noticing models, in this process


@pytest.fixture
def models(torch: Any, tmp_path: Path) -> Iterator[ScriptModels]:
    before = watched()
    with ExitStack() as stack:
        yield ScriptModels(stack, tmp_path / "t.moetrace", Options(), None)
    assert watched() == before


def watched() -> list[Any]:
    """Everything that is stood around."""
    import torch
    from transformers import GenerationMixin, PreTrainedModel

    places = [
        (torch, "compile"),
        (torch.nn.Module, "__getstate__"),
        (PreTrainedModel, "__call__"),
        (GenerationMixin, "generate"),
        (GenerationMixin, "init_continuous_batching"),
    ]
    return [vars(owner).get(name) for owner, name in places]


def fresh(family: str, **layers: int) -> Any:
    return FAMILIES[family](**layers).eval()


def tokens_of(models: ScriptModels) -> list[int]:
    return [open_trace(path).tokens for path in models.finish()]


def run_compiled(way: str, model: Any, ids: Any) -> Any:
    """`model` on `ids` twice, compiled in one of the ways that users have."""
    import torch

    options = {"backend": "eager", "fullgraph": True}
    call: Callable[..., Any] = model
    if way == "the model":
        call = torch.compile(model, **options)
    elif way == "its forward":
        model.forward = torch.compile(model.forward, **options)
    elif way == "in place":
        model.compile(**options)
    elif way == "a function":
        call = torch.compile(lambda x, **kwargs: model(x, **kwargs), **options)
    with torch.no_grad():
        return [call(ids, use_cache=False).logits for _ in range(2)][1]


@pytest.mark.parametrize("way", ["the model", "its forward", "in place", "a function", "not"])
@pytest.mark.parametrize("family", ["qwen3", "llama"])
def test_models_are_noticed_before_they_are_compiled(
    family: str, way: str, models: ScriptModels, torch: Any
) -> None:
    torch.compiler.reset()
    model, ids = fresh(family, layers=2), torch.arange(5, 15)[None]
    expected = run_compiled("not", copy.deepcopy(model), ids) if family == "llama" else None
    logits = run_compiled(way, model, ids)
    assert expected is None or torch.equal(logits, expected)
    assert tokens_of(models) == ([20] if family == "qwen3" else [])
    torch.compiler.reset()
    assert_untouched(model)


@pytest.mark.parametrize("family", ["m3_vl", "mixtral"])
def test_the_outermost_model_is_recorded(family: str, models: ScriptModels, torch: Any) -> None:
    model = fresh(family)
    model.generate(torch.arange(5, 15)[None], max_new_tokens=4, min_new_tokens=4)
    assert tokens_of(models) == [13]


def test_generate_is_followed_from_the_first_call(models: ScriptModels, torch: Any) -> None:
    model, ids = fresh("qwen3"), torch.arange(5, 15)[None].repeat(2, 1)
    ids[0, :4] = 0
    model.generate(ids, attention_mask=(ids != 0).long(), max_new_tokens=4, min_new_tokens=4)
    (path,) = models.finish()
    trace = open_trace(path)
    assert [request.prompt_tokens for request in trace.requests] == [6, 10]
    assert [request.output_tokens for request in trace.requests] == [4, 4]


def test_a_generate_of_its_own_is_called_once(models: ScriptModels, torch: Any) -> None:
    from transformers import Qwen3MoeForCausalLM

    calls = []

    class Own(Qwen3MoeForCausalLM):  # type: ignore[misc]
        def generate(self, ids: Any, **kwargs: Any) -> Any:
            calls.append(ids)
            return super().generate(ids, **kwargs)

    model = Own(fresh("qwen3").config).eval()
    for _ in range(2):
        model.generate(torch.arange(5, 15)[None], max_new_tokens=4, min_new_tokens=4)
    assert len(calls) == 2 and tokens_of(models) == [26]


def test_continuous_batching_is_followed_from_its_first_batch(
    models: ScriptModels, torch: Any
) -> None:
    from transformers import ContinuousBatchingConfig, GenerationConfig

    settings = GenerationConfig(max_new_tokens=4, do_sample=False, eos_token_id=63)
    small = ContinuousBatchingConfig(
        page_size=32, num_blocks=32, max_batch_tokens=8, use_cuda_graph=False
    )
    fresh("qwen3").generate_batch(
        [[5, 6, 7], [8, 9]], generation_config=settings, continuous_batching_config=small
    )
    (path,) = models.finish()
    assert open_trace(path).tokens >= 5 and len(open_trace(path).requests) == 2


def test_copies_and_pickles_are_models_of_their_own(models: ScriptModels, torch: Any) -> None:
    model, ids = fresh("qwen3"), torch.arange(5, 15)[None]
    plain = model.generate(ids, max_new_tokens=4, min_new_tokens=4)
    twin, loaded = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
    for other in (twin, loaded):
        assert_untouched(other)
        assert torch.equal(other.generate(ids, max_new_tokens=4, min_new_tokens=4), plain)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.mul_(-1.5)
    changed = twin.generate(ids, max_new_tokens=4, min_new_tokens=4)
    assert not torch.equal(changed, plain)
    assert tokens_of(models) == [13, 26, 13]


def test_a_model_that_cannot_be_recorded_is_named_and_runs(
    models: ScriptModels, torch: Any, caplog: pytest.LogCaptureFixture
) -> None:
    from transformers import SwitchTransformersConfig, SwitchTransformersForConditionalGeneration

    sizes = {"num_layers": 2, "num_decoder_layers": 2, "num_heads": 2, "d_kv": 8, "d_ff": 16}
    config = SwitchTransformersConfig(vocab_size=64, d_model=16, num_experts=4, **sizes)
    ids = torch.arange(5, 15)[None]
    SwitchTransformersForConditionalGeneration(config).eval()(ids, decoder_input_ids=ids)
    fresh("llama")(ids)
    assert tokens_of(models) == []
    named = [r.getMessage() for r in caplog.records if "is not recorded" in r.getMessage()]
    assert named and all("Switch" in line for line in named) and len(named) <= 3


def test_an_error_of_ours_is_one_line_and_the_model_runs(
    torch: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def meet(model: Any) -> bool:
        raise RuntimeError("ours")

    with ExitStack() as stack:
        ModelWatch(stack, meet)
        model = fresh("mixtral")
        for _ in range(2):
            assert model(torch.arange(5, 15)[None]).logits.shape == (1, 10, 64)
    assert caplog.text.count("MixtralForCausalLM is not recorded: RuntimeError") == 1
    assert "ours" not in caplog.text  # it might be a prompt


def test_a_model_that_never_ran_leaves_no_trace(models: ScriptModels, torch: Any) -> None:
    torch.compile(fresh("qwen3"))
    assert models.finish() == []


def test_models_in_two_threads_each_have_a_trace(models: ScriptModels, torch: Any) -> None:
    built = [fresh("qwen3"), fresh("mixtral")]
    ids = torch.arange(5, 15)[None]
    threads = [threading.Thread(target=model, args=(ids,)) for model in built]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert tokens_of(models) == [10, 10]


def test_configurations_that_name_experts(torch: Any) -> None:
    assert [names_experts(fresh(family).config) for family in FAMILIES] == [True] * 4 + [False]


def test_an_action_waits_for_its_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "late_module.py").write_text("value = 1\n")
    (tmp_path / "never_module.py").write_text("value = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    seen: list[Any] = []
    before = sys.meta_path[:]
    with ExitStack() as stack:
        when_imported(stack, "json", lambda: seen.append("json"))
        when_imported(stack, "late_module", lambda: seen.append(sys.modules["late_module"].value))
        when_imported(stack, "never_module", lambda: seen.append("never"))
        assert seen == ["json"]
        import late_module  # type: ignore[import-not-found]

        assert seen == ["json", 1] and late_module.__spec__.loader.get_source("late_module")
    assert sys.meta_path == before


def test_a_model_that_is_let_go_is_freed(models: ScriptModels, torch: Any) -> None:
    model = fresh("qwen3")
    model.generate(torch.arange(5, 15)[None], max_new_tokens=4, min_new_tokens=4)
    alive = weakref.ref(model)
    del model
    assert alive() is None  # or a script that loads one after the other would run out of memory
    assert tokens_of(models) == [13]
