"""Exporters: traces read back, in the formats of other tools."""

from halocast.traces.export.chakra import check_chakra, export_chakra
from halocast.traces.export.perfetto import export_hta, export_perfetto, export_side_by_side
from halocast.traces.export.tables import export_tables

__all__ = ["check_chakra", "export_chakra", "export_hta", "export_perfetto", "export_side_by_side", "export_tables"]
