"""Machines that one buys, experts in host memory, and models side by side."""

from __future__ import annotations

import shlex

import pytest

from moeprof import LatencyTargets, compare_models, load_model, plan_traffic, try_machines
from moeprof.hardware import load_hardware
from moeprof.model import weight_bytes
from moeprof.offload import constant, decode_work, find_rates
from moeprof.projection import plan_deployment
from moeprof.projection.advice import MachineTable
from moeprof.projection.advice.consumer import Machine, consumer_machines
from moeprof.projection.advice.host_experts import host_option
from moeprof.projection.holding import deployment_ledger

M3 = load_model("minimax-m3")
TRAFFIC = plan_traffic(M3, input_len=2048, output_len=512)


@pytest.fixture(scope="module")
def machines() -> MachineTable:
    return try_machines(M3, TRAFFIC)


def test_every_machine_has_options_or_says_why_not(machines: MachineTable) -> None:
    assert len(machines.rows) == len(consumer_machines())
    unfit = [row for row in machines.rows if not row.options]
    assert [row.machine.hardware for row in unfit] == ["strix-halo"]
    assert "ud-iq1_m, takes 127 GB" in unfit[0].problem
    rates = [option.output_tok_s.value for option in machines.options]
    assert rates == sorted(rates, reverse=True)


def test_what_is_in_gpu_memory_fits_there(machines: MachineTable) -> None:
    for option in machines.options:
        fits = deployment_ledger(option.deployment, option.traffic).fits
        hosted = option.host_layers > 0 or option.gpu_experts is not None
        assert fits != hosted
        assert option.output_tok_s.provenance == "assumed" or not hosted


def test_experts_fit_gpus_and_host_together(machines: MachineTable) -> None:
    hosted = [
        (row.machine, option)
        for row in machines.rows
        for option in row.options
        if option.host_layers
    ]
    assert len(hosted) >= 5
    for machine, option in hosted:
        assert machine.ram_bytes is not None
        sizes = weight_bytes(M3, option.precision)
        each = sizes["routed"] / 57
        assert option.host_layers * each <= machine.ram_bytes
        gpus = option.deployment.cluster
        card = gpus.gpus * gpus.profile.memory_visible.value
        on_gpus = sum(sizes.values()) - option.host_layers * each
        assert on_gpus <= card < on_gpus + each + 8 * 2**30  # one layer more does not fit
        words = shlex.split(option.command)
        assert int(words[words.index("-ncmoe") + 1]) == option.host_layers + 3


def test_host_experts_by_hand() -> None:
    """The law written out: what the GPU reads at its rate, what the CPU reads at its own."""
    deployment = plan_deployment(
        "minimax-m3",
        "rtx-4090+epyc-9005-12ch-6000",
        precision="ud-q4_k_xl",
        engine="llamacpp",
    )
    option = host_option(deployment, TRAFFIC, 384e9)
    assert option is not None
    work = decode_work(M3, "ud-q4_k_xl", context_tokens=2560)
    rates = find_rates(deployment.cluster, launches="compiled")
    assert rates.cpu is not None
    hosted, experts = option.host_layers, work.top_k * work.expert_bytes
    gpu = work.dense_bytes + work.kv_bytes + 57 * work.shared_bytes + (57 - hosted) * experts
    least = gpu / rates.hbm.value + hosted * experts / rates.cpu.value
    launches = 60 * rates.layer_s.value + rates.step_s.value + 57 * rates.kernel_s.value
    launches += hosted * rates.cpu_layer_s.value
    assert option.tpot_ms.value / 1e3 == pytest.approx(least + launches, rel=0.02)
    assert constant("host_reserve_bytes").value > 0


def test_experts_of_each_layer_fit_beside_the_rest(machines: MachineTable) -> None:
    found = [option for option in machines.options if option.gpu_experts is not None]
    assert len(found) == 2
    for option in found:
        sizes, slots = weight_bytes(M3, option.precision), option.gpu_experts
        assert slots is not None and 0 < slots < 128
        each = sizes["routed"] / 128  # of one expert, all layers together
        card = option.gpus * option.deployment.cluster.profile.memory_visible.value
        rest = sum(sizes.values()) - sizes["routed"]
        assert rest + slots * each <= card < rest + (slots + 1) * each + 12 * 2**30
        assert f"--kt-num-gpu-experts {slots} " in option.command


def test_more_gpu_memory_never_hosts_more_layers() -> None:
    layers = []
    for hardware in ("rtx-4090", "rtx-5090", "rtx-pro-6000"):
        deployment = plan_deployment(
            "minimax-m3",
            f"{hardware}+epyc-9005-12ch-6000",
            precision="ud-q4_k_xl",
            engine="llamacpp",
        )
        option = host_option(deployment, TRAFFIC, 384e9)
        assert option is not None
        layers.append(option.host_layers)
    assert layers == sorted(layers, reverse=True) and layers[0] > layers[-1]


def test_a_host_too_small_holds_nothing() -> None:
    deployment = plan_deployment(
        "minimax-m3", "rtx-4090+desktop-2ch-ddr5-6000", precision="ud-q4_k_xl", engine="llamacpp"
    )
    assert host_option(deployment, TRAFFIC, 192e9) is None
    assert host_option(deployment, TRAFFIC, 260e9) is not None


def test_a_machine_is_named_as_hardware_is() -> None:
    found = try_machines(M3, TRAFFIC, ["rtx-4090+epyc-9005-12ch-6000", Machine("4xgb10", "Spark")])
    most = load_hardware("rtx-4090+epyc-9005-12ch-6000").host
    assert most is not None
    assert found.rows[0].machine.ram_bytes == most.figure("memory_max_bytes").value
    assert found.rows[0].options[0].precision == "ud-q4_k_xl"
    assert {option.engine for option in found.rows[1].options} == {"vllm", "llamacpp"}


def test_models_stand_side_by_side() -> None:
    models = ("minimax-m3", "llama-3.1-70b", "llama-3.1-405b")
    found = compare_models(models, ["8xh200"], LatencyTargets(50, 3000), TRAFFIC)
    m3, small, large = found.costs
    assert m3.active_parameters < small.active_parameters < large.active_parameters
    assert small.option and large.option and m3.option
    assert large.option.output_tok_s.value < small.option.output_tok_s.value
    assert small.kv_bytes_per_token == 2 * 80 * 8 * 128  # FP8, 8 heads on 8 ranks: no copies
    for cost in found.costs:
        assert cost.option is not None and cost.option.cost_per_million_tokens is not None
        energy, rate = cost.option.energy_wh_per_million_tokens, cost.option.output_tok_s.value
        assert energy and energy.value == pytest.approx(8 * 700 / rate / 3600 * 1e6)


def test_a_model_that_cannot_says_why() -> None:
    long = plan_traffic(M3, input_len=200_000, output_len=512)
    found = compare_models(["llama-3.1-70b"], ["8xh200"], LatencyTargets(50), long)
    assert found.options == [] and "takes 131,072 tokens of 200,512" in found.costs[0].problem
    slow = compare_models(["llama-3.1-405b"], ["8xh200"], LatencyTargets(1), TRAFFIC)
    assert "TPOT" in slow.costs[0].problem
