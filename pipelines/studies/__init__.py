"""Studies: which trials answer a question, and what the papers say of it; only values, no work."""
