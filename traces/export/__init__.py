"""Exporters: a trace read back, in the formats of other tools."""
