"""Sweeps: the trials of a study carried out here, in several processes, or on a Ray cluster."""
