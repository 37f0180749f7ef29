"""The theory of training dynamics measured on one's own network: the figures of [D]."""
