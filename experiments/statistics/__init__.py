"""Statistics of studies: learning curves, ranks of several methods, claims and their verdicts."""
