"""Statistics of studies: learning curves, ranks of several arms, claims and their verdicts."""
