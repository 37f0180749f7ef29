"""Reports on runs: curves, differences from random, times, tables; PNG, CSV and one HTML page."""
