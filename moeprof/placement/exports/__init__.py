"""A plan as the file or the flags that an engine loads. One engine a file."""

from moeprof.placement.exports.export import ENGINES, PlanExport, export_name, export_plan

__all__ = ["ENGINES", "PlanExport", "export_name", "export_plan"]
