"""Data, networks and training, in PyTorch."""

import os

# OpenMP reads it when torch is loaded. Its threads spin for milliseconds by default, which beside
# other work is most of what they do; after 20,000 turns they sleep.
if not os.environ.keys() & {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}:
    os.environ["GOMP_SPINCOUNT"] = "20000"
