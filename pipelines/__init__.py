"""Active learning, end to end: strategies, rounds, records, one script for each data set."""
