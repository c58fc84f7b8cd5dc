"""Exporters: a trace read back, in the formats of other tools."""

from halocast.traces.export.perfetto import export_hta, export_perfetto
from halocast.traces.export.tables import export_tables

__all__ = ["export_hta", "export_perfetto", "export_tables"]
