"""JAX in 64 bits, with full products of float32 arrays; set when this module is imported.

Every factorisation downstream of a kernel is done in float64; float32 is asked for explicitly
where it is enough. A GPU's TF32, the default for products of float32 arrays, has three digits.
Whatever computes with JAX in `kernel` and `bridge` imports this module, directly or through
`kernel.model`; what does not (errors, options) is imported without JAX.
"""

import jax

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_default_matmul_precision", "highest")
