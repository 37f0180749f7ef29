"""Empirical NTK and look-ahead predictions, in JAX.

Importing any part of this package switches JAX to 64-bit types, because every factorisation
downstream of the kernel is done in float64; float32 is asked for explicitly where it is enough.
Products of float32 arrays are in full float32 on every device: a GPU's TF32 has three digits.
"""

import jax

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_default_matmul_precision", "highest")
