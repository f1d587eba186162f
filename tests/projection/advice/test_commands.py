"""Command lines say what the deployment is, in flags that the engine documents."""

from __future__ import annotations

import json
import re
import shlex

import pytest

from moeprof import MoEModel
from moeprof.errors import InputError
from moeprof.projection import Traffic, plan_deployment
from moeprof.projection.advice import launch_command
from moeprof.projection.advice.commands import Launch
from moeprof.projection.advice.commands.llamacpp import override_pattern
from moeprof.projection.advice.engine_facts import advised_engines, flag_source
from moeprof.projection.deployment import Deployment, Held

TRAFFIC = Traffic(24, 4096, 1024)


def parsed(command: str) -> tuple[list[str], dict[str, str | bool]]:
    """(words before the first flag, flag -> value or True)."""
    words = shlex.split(command)
    start = 3 if words[0] == "python" else next(i for i, w in enumerate(words) if w[0] == "-")
    flags: dict[str, str | bool] = {}
    for word, after in zip(words[start:], [*words[start + 1 :], "-"], strict=True):
        if word.startswith("-"):
            flags[word] = True if after.startswith("-") else after
    return words[:start], flags


def flags_of(engine: str, hardware: str, precision: str, **how: object) -> dict[str, str | bool]:
    traffic = how.pop("traffic", TRAFFIC)
    deployment = plan_deployment(
        "minimax-m3",
        hardware,
        precision=precision,
        engine=engine,
        **how,  # type: ignore[arg-type]
    )
    return parsed(launch_command(deployment, traffic).command)[1]  # type: ignore[arg-type]


def test_vllm() -> None:
    deployment = plan_deployment("minimax-m3", "8xh200", precision="mxfp8", tp=4, dp=2, ep=8)
    start, flags = parsed(launch_command(deployment, TRAFFIC).command)
    assert start == ["vllm", "serve", "MiniMaxAI/MiniMax-M3-MXFP8"]
    assert flags == {
        "--tensor-parallel-size": "4",
        "--data-parallel-size": "2",
        "--enable-expert-parallel": True,
        "--max-num-seqs": "12",  # of each group
        "--max-model-len": "5120",
        "--kv-cache-dtype": "auto",
        "--gpu-memory-utilization": "0.92",
        "--block-size": "128",  # a block of M3's sparse attention
    }


def test_vllm_says_what_is_held_and_drafted() -> None:
    flags = flags_of(
        "vllm",
        "2x8xb200+ib-ndr-400",
        "nvfp4",
        ep=16,
        kv_dtype="fp8",
        held=Held(utilization=0.85, redundant=16, draft="eagle3-gqa"),
        traffic=Traffic(8, 100, 50, draft_tokens=3, accepted=2.8),
    )
    assert json.loads(str(flags["--eplb-config"])) == {"num_redundant_experts": 16}
    assert json.loads(str(flags["--speculative-config"])) == {
        "method": "eagle3",
        "model": "Inferact/MiniMax-M3-EAGLE3-GQA",
        "num_speculative_tokens": 3,
    }
    wanted = {"--kv-cache-dtype": "fp8", "--gpu-memory-utilization": "0.85", "--nnodes": "2"}
    assert wanted.items() <= flags.items()
    assert flags["--enable-eplb"] is True


def test_sglang_counts_all_ranks_as_tensor_parallel() -> None:
    flags = flags_of("sglang", "8xb200", "mxfp8", tp=2, dp=4, ep=8, kv_dtype="fp8")
    assert flags == {
        "--model-path": "MiniMaxAI/MiniMax-M3-MXFP8",
        "--tp-size": "8",
        "--dp-size": "4",
        "--enable-dp-attention": True,
        "--ep-size": "8",
        "--max-running-requests": "24",  # of all groups
        "--context-length": "5120",
        "--kv-cache-dtype": "fp8_e4m3",
    }


def test_sglang_replicates_a_dense_model() -> None:
    deployment = plan_deployment("llama-3.1-70b", "8xh200", tp=2, dp=4, engine="sglang")
    flags = parsed(launch_command(deployment, TRAFFIC).command)[1]
    assert (flags["--tp-size"], flags["--dp-size"]) == ("2", "4")
    assert "--enable-dp-attention" not in flags


def test_trtllm_has_a_file_for_what_has_no_flag() -> None:
    deployment = plan_deployment(
        "minimax-m3", "8xb200", precision="nvfp4", tp=1, dp=8, ep=8, engine="trtllm", kv_dtype="fp8"
    )
    launch = launch_command(deployment, TRAFFIC)
    start, flags = parsed(launch.command)
    assert start == ["trtllm-serve", "nvidia/MiniMax-M3-NVFP4"]
    assert (flags["--tp_size"], flags["--ep_size"], flags["--max_batch_size"]) == ("8", "8", "3")
    text = launch.files[str(flags["--extra_llm_api_options"])]
    assert "enable_attention_dp: true\n" in text
    assert "  dtype: fp8\n" in text


def test_drafts_are_told_in_each_engine_s_words() -> None:
    traffic = Traffic(8, 100, 50, draft_tokens=3, accepted=2.8)

    def plan(engine: str, held: Held) -> Deployment:
        return plan_deployment("minimax-m3", "8xb200", precision="nvfp4", engine=engine, held=held)

    draft, none = Held(draft="eagle3-gqa"), Held()
    text = launch_command(plan("trtllm", draft), traffic).files["extra-llm-api-options.yaml"]
    assert "  decoding_type: Eagle3\n  max_draft_len: 3\n" in text
    assert "  speculative_model: Inferact/MiniMax-M3-EAGLE3-GQA\n" in text
    flags = parsed(launch_command(plan("sglang", draft), traffic).command)[1]
    assert flags["--speculative-algorithm"] == "EAGLE3"
    assert (flags["--speculative-num-steps"], flags["--speculative-num-draft-tokens"]) == ("3", "4")
    flags = parsed(launch_command(plan("sglang", none), traffic).command)[1]
    assert flags["--speculative-algorithm"] == "NGRAM"
    flags = parsed(launch_command(plan("vllm", none), traffic).command)[1]
    assert json.loads(str(flags["--speculative-config"]))["method"] == "ngram"


def test_llamacpp_keeps_the_experts_of_the_first_layers_in_host_memory() -> None:
    deployment = plan_deployment("minimax-m3", "rtx-4090", precision="ud-iq1_m", engine="llamacpp")
    launch = launch_command(deployment, Traffic(2, 8000, 192), host_layers=50)
    assert parsed(launch.command)[1] == {
        "-hf": "unsloth/MiniMax-M3-GGUF:UD-IQ1_M",
        "-ngl": "99",
        "-ncmoe": "53",  # M3's first three layers have no experts
        "-c": "16384",
        "-np": "2",
        "-ctk": "bf16",
        "-ctv": "bf16",
        "-fit": "off",
    }


def test_the_pattern_for_ot_names_the_same_layers() -> None:
    deployment = plan_deployment("minimax-m3", "rtx-4090", precision="ud-iq1_m", engine="llamacpp")
    pattern = override_pattern(Launch(deployment, TRAFFIC, host_layers=5)).removesuffix("=CPU")
    named = [
        layer for layer in range(60) if re.search(pattern, f"blk.{layer}.ffn_gate_exps.weight")
    ]
    assert named == [3, 4, 5, 6, 7]
    assert not re.search(pattern, "blk.3.ffn_gate_shexp.weight")


def test_ktransformers_says_how_many_experts_stand_on_gpus() -> None:
    deployment = plan_deployment("minimax-m3", "8xh100", precision="mxfp8", engine="ktransformers")
    flags = parsed(launch_command(deployment, TRAFFIC, gpu_experts=40).command)[1]
    wanted = {"--kt-method": "MXFP8", "--kt-num-gpu-experts": "40", "--tp-size": "8"}
    assert wanted.items() <= flags.items()
    flags = parsed(launch_command(deployment, TRAFFIC, context=9000).command)[1]
    assert (flags["--kt-num-gpu-experts"], flags["--context-length"]) == ("128", "9000")


def test_names_are_quoted() -> None:
    model = MoEModel.preset("olmoe-1b-7b")
    hostile = MoEModel(**{**vars_of(model), "name": "a b; rm -rf $HOME"})
    for engine in advised_engines():
        deployment = plan_deployment(hostile, "h100", engine=engine)
        command = launch_command(deployment, TRAFFIC).command
        assert any("./a b; rm -rf $HOME-bf16" in word for word in shlex.split(command))
        assert ";" not in re.sub(r"'[^']*'", "", command)


def vars_of(model: MoEModel) -> dict[str, object]:
    return {name: value for name, value in vars(model).items() if name != "parameters"}


@pytest.mark.parametrize("engine", advised_engines())
def test_every_flag_has_the_page_that_documents_it(engine: str) -> None:
    deployment = plan_deployment("olmoe-1b-7b", "4xh100", engine=engine)
    launch = launch_command(deployment, TRAFFIC)
    assert set(launch.sources) == set(parsed(launch.command)[1])
    assert all("https://" in page for page in launch.sources.values())


def test_an_unknown_flag_is_refused() -> None:
    with pytest.raises(InputError, match="--fast is no known flag of vllm"):
        flag_source("vllm", "--fast")
