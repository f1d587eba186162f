"""moeprof: record where a Mixture-of-Experts model sends its tokens, and what that means.

    with moeprof.record(model, "run.moetrace"):
        model.generate(**inputs)
    trace = moeprof.open_trace("run.moetrace")
    moeprof.analyze_load(trace).mean_imbalance

Names are imported when they are first used: `import moeprof` costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from moeprof.analysis import (
        analyze_affinity,
        analyze_load,
        analyze_locality,
        analyze_routing_factors,
        analyze_specialization,
        find_shared_prefixes,
        sampling_error,
    )
    from moeprof.analysis.comparison import (
        compare_documents,
        compare_traces,
        router_saturation,
    )
    from moeprof.analysis.pruning import analyze_pruning
    from moeprof.cache import judge_cache, lru_curve, replay_cache
    from moeprof.cache.prefetch import replay_prefetch
    from moeprof.capture import capture_llamacpp, capture_transformers, record
    from moeprof.capture.control import capture_status, start_capture, stop_capture
    from moeprof.capture.server import capture_server
    from moeprof.capture.stream.run import stream
    from moeprof.capture.vllm.serve import capture_vllm
    from moeprof.demo import run_demo
    from moeprof.doctor import run_doctor
    from moeprof.errors import MoeprofError
    from moeprof.hardware import describe_hardware, list_hardware, load_hardware
    from moeprof.hardware.probe import probe_hardware
    from moeprof.model import MoEModel, describe_model, load_model
    from moeprof.offload import plan_offload
    from moeprof.placement import (
        Placement,
        Topology,
        measure_traffic,
        place_load,
        place_trace,
        read_plan,
        solve_placement,
        write_plan,
    )
    from moeprof.placement.exports import export_plan
    from moeprof.placement.mix import mix_domains
    from moeprof.placement.online import place_online
    from moeprof.placement.replay import judge_placements
    from moeprof.placement.study import study_placement
    from moeprof.placement.sweep import sweep_redundancy
    from moeprof.projection import (
        calibrate_laws,
        project_deployment,
        project_memory,
        project_table,
        read_measured,
        recorded_loads,
        shipped_laws,
    )
    from moeprof.projection.advice import (
        LatencyTargets,
        advise_deployment,
        compare_models,
        launch_command,
        plan_traffic,
    )
    from moeprof.projection.gib import project_gib
    from moeprof.projection.routing import study_routing
    from moeprof.projection.serving import make_load
    from moeprof.projection.serving.project import project_serving
    from moeprof.quantity import Provenance, Quantity
    from moeprof.report import gather_report, write_report
    from moeprof.sweep import make_grid, read_grid, sweep_grid
    from moeprof.synth import (
        RoutingTargets,
        Traffic,
        fit_routing,
        judge_fit,
        synthesize_trace,
    )
    from moeprof.trace import (
        Phase,
        Request,
        TokenRows,
        Trace,
        TraceWriter,
        describe_trace,
        merge_traces,
        migrate_trace,
        open_trace,
        rebatch,
        redact_trace,
        shorten_labels,
        slice_trace,
        synthesize_rows,
        validate_trace,
        write_counts,
    )
    from moeprof.trace.formats import export_trace, import_trace

# public name: the package that defines it
_HOMES = {
    "LatencyTargets": "projection.advice",
    "MoEModel": "model",
    "MoeprofError": "errors",
    "Phase": "trace",
    "Placement": "placement",
    "Provenance": "quantity",
    "Quantity": "quantity",
    "Request": "trace",
    "RoutingTargets": "synth",
    "TokenRows": "trace",
    "Topology": "placement",
    "Trace": "trace",
    "TraceWriter": "trace",
    "Traffic": "synth",
    "advise_deployment": "projection.advice",
    "analyze_affinity": "analysis",
    "analyze_load": "analysis",
    "analyze_locality": "analysis",
    "analyze_pruning": "analysis.pruning",
    "analyze_routing_factors": "analysis",
    "analyze_specialization": "analysis",
    "find_shared_prefixes": "analysis",
    "capture_llamacpp": "capture",
    "capture_status": "capture.control",
    "capture_server": "capture.server",
    "capture_transformers": "capture",
    "capture_vllm": "capture.vllm.serve",
    "describe_hardware": "hardware",
    "describe_model": "model",
    "describe_trace": "trace",
    "export_plan": "placement.exports",
    "export_trace": "trace.formats",
    "fit_routing": "synth",
    "gather_report": "report",
    "import_trace": "trace.formats",
    "judge_cache": "cache",
    "judge_fit": "synth",
    "judge_placements": "placement.replay",
    "launch_command": "projection.advice",
    "list_hardware": "hardware",
    "load_hardware": "hardware",
    "load_model": "model",
    "lru_curve": "cache",
    "make_grid": "sweep",
    "make_load": "projection.serving",
    "measure_traffic": "placement",
    "merge_traces": "trace",
    "migrate_trace": "trace",
    "mix_domains": "placement.mix",
    "open_trace": "trace",
    "place_online": "placement.online",
    "plan_offload": "offload",
    "plan_traffic": "projection.advice",
    "place_load": "placement",
    "place_trace": "placement",
    "probe_hardware": "hardware.probe",
    "project_deployment": "projection",
    "project_table": "projection",
    "calibrate_laws": "projection",
    "compare_documents": "analysis.comparison",
    "compare_models": "projection.advice",
    "compare_traces": "analysis.comparison",
    "read_grid": "sweep",
    "read_measured": "projection",
    "recorded_loads": "projection",
    "shipped_laws": "projection",
    "project_gib": "projection.gib",
    "project_memory": "projection",
    "project_serving": "projection.serving.project",
    "read_plan": "placement",
    "rebatch": "trace",
    "record": "capture",
    "redact_trace": "trace",
    "replay_cache": "cache",
    "replay_prefetch": "cache.prefetch",
    "router_saturation": "analysis.comparison",
    "run_demo": "demo",
    "run_doctor": "doctor",
    "sampling_error": "analysis",
    "shorten_labels": "trace",
    "slice_trace": "trace",
    "solve_placement": "placement",
    "start_capture": "capture.control",
    "stop_capture": "capture.control",
    "stream": "capture.stream.run",
    "study_placement": "placement.study",
    "study_routing": "projection.routing",
    "sweep_grid": "sweep",
    "sweep_redundancy": "placement.sweep",
    "synthesize_rows": "trace",
    "synthesize_trace": "synth",
    "tornado_bars": "projection.advice",
    "try_machines": "projection.advice",
    "validate_trace": "trace",
    "write_counts": "trace",
    "write_plan": "placement",
    "write_report": "report",
}

__all__ = [
    "LatencyTargets",
    "MoEModel",
    "MoeprofError",
    "Phase",
    "Placement",
    "Provenance",
    "Quantity",
    "Request",
    "RoutingTargets",
    "TokenRows",
    "Topology",
    "Trace",
    "TraceWriter",
    "Traffic",
    "__version__",
    "advise_deployment",
    "analyze_affinity",
    "analyze_load",
    "analyze_locality",
    "analyze_pruning",
    "analyze_routing_factors",
    "analyze_specialization",
    "calibrate_laws",
    "capture_llamacpp",
    "capture_server",
    "capture_status",
    "capture_transformers",
    "capture_vllm",
    "compare_documents",
    "compare_models",
    "compare_traces",
    "describe_hardware",
    "describe_model",
    "describe_trace",
    "export_plan",
    "export_trace",
    "find_shared_prefixes",
    "fit_routing",
    "gather_report",
    "import_trace",
    "judge_cache",
    "judge_fit",
    "judge_placements",
    "launch_command",
    "list_hardware",
    "load_hardware",
    "load_model",
    "lru_curve",
    "make_grid",
    "make_load",
    "measure_traffic",
    "merge_traces",
    "migrate_trace",
    "mix_domains",
    "open_trace",
    "place_load",
    "place_online",
    "place_trace",
    "plan_offload",
    "plan_traffic",
    "probe_hardware",
    "project_deployment",
    "project_gib",
    "project_memory",
    "project_serving",
    "project_table",
    "read_grid",
    "read_measured",
    "read_plan",
    "rebatch",
    "record",
    "recorded_loads",
    "redact_trace",
    "replay_cache",
    "replay_prefetch",
    "router_saturation",
    "run_demo",
    "run_doctor",
    "sampling_error",
    "shipped_laws",
    "shorten_labels",
    "slice_trace",
    "solve_placement",
    "start_capture",
    "stop_capture",
    "stream",
    "study_placement",
    "study_routing",
    "sweep_grid",
    "sweep_redundancy",
    "synthesize_rows",
    "synthesize_trace",
    "tornado_bars",
    "try_machines",
    "validate_trace",
    "write_counts",
    "write_plan",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'moeprof' has no attribute {name!r}")
    value = getattr(import_module(f"moeprof.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
