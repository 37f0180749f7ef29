"""Certified JAX mirrors of trained PyTorch networks."""
