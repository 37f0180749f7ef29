"""Data, networks and training, in PyTorch."""
