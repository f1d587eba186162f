"""Results as text for a terminal: 80 columns, aligned, with units, and no colour to rely on."""

from moeprof.report.text.advice import advice_text
from moeprof.report.text.advice_tables import comparison_text, machines_text
from moeprof.report.text.conversion import edit_text, export_text, import_text, merge_text
from moeprof.report.text.curve import curve_text
from moeprof.report.text.findings import findings_text
from moeprof.report.text.grid_sweep import grid_sweep_text
from moeprof.report.text.hardware import hardware_list_text, hardware_text, probe_text
from moeprof.report.text.load import load_text
from moeprof.report.text.locality import locality_text
from moeprof.report.text.memory import ledger_text, projection_text
from moeprof.report.text.model import model_text, models_text
from moeprof.report.text.offload import offload_text
from moeprof.report.text.place_export import plan_export_text
from moeprof.report.text.placement import placement_text
from moeprof.report.text.placement_studies import (
    mix_text,
    online_text,
    placement_figures_text,
    sweep_text,
)
from moeprof.report.text.prefetch import prefetch_text
from moeprof.report.text.replay import replays_text, verdict_text
from moeprof.report.text.report import report_text
from moeprof.report.text.routing import (
    gib_text,
    mix_speeds_text,
    sensitivity_text,
    speeds_text,
)
from moeprof.report.text.serving import serving_text
from moeprof.report.text.speed import projected_table_text
from moeprof.report.text.synth import judgement_text, synth_text
from moeprof.report.text.trace import trace_info_text

__all__ = [
    "advice_text",
    "comparison_text",
    "curve_text",
    "edit_text",
    "export_text",
    "findings_text",
    "gib_text",
    "grid_sweep_text",
    "hardware_list_text",
    "hardware_text",
    "import_text",
    "judgement_text",
    "ledger_text",
    "load_text",
    "locality_text",
    "machines_text",
    "merge_text",
    "mix_speeds_text",
    "mix_text",
    "model_text",
    "models_text",
    "offload_text",
    "online_text",
    "placement_figures_text",
    "placement_text",
    "plan_export_text",
    "prefetch_text",
    "probe_text",
    "projected_table_text",
    "projection_text",
    "replays_text",
    "report_text",
    "sensitivity_text",
    "serving_text",
    "speeds_text",
    "sweep_text",
    "synth_text",
    "trace_info_text",
    "verdict_text",
]
