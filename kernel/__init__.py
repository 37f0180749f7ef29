"""Empirical NTK and look-ahead predictions, in JAX (with the types of `kernel.x64`)."""
