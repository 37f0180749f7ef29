"""Records of runs → curves, differences from random, times, tables: PNG, CSV and one HTML page."""

from pipelines.report.build import Report, find, report, show

__all__ = ["Report", "find", "report", "show"]
