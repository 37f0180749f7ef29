"""Reports on runs: curves, differences from random, times, tables; PNG, CSV and one HTML page."""

from pipelines.report.build import Report, find_runs, print_report, report

__all__ = ["Report", "find_runs", "print_report", "report"]
