"""From a trained PyTorch network to a certified JAX function of its parameters.

Importing any part of this package imports `kernel` first, which switches JAX to 64-bit types
before an array exists.
"""

import kernel as _kernel  # noqa: F401
