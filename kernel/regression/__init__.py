"""Kernel regression: what a posterior is given, how it is conditioned, and how S is held."""
