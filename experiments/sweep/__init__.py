"""A study → its trials carried out, each once, on whatever machines there are."""
