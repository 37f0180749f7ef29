"""Measurements: scripts that print a table with the machine, n and the spread."""
