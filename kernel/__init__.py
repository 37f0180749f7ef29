"""Empirical NTK and look-ahead predictions, in JAX.

Importing any part of this package switches JAX to 64-bit types, because every factorisation
downstream of the kernel is done in float64; float32 is asked for explicitly where it is enough.
"""

import jax

jax.config.update("jax_enable_x64", True)
