"""Statistics of a study: tables of runs and measurements → intervals, tests, verdicts.

Only of tables: nothing here reads a record, and nothing here knows networks or kernels.
"""
