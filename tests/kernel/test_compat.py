import subprocess
import sys

import jax
import numpy as np

from kernel.compat import nt


def test_analytic_and_empirical_kernels_agree_in_the_wide_limit():
    init, apply, kernel = nt.stax.serial(nt.stax.Dense(4096), nt.stax.Relu(), nt.stax.Dense(1))
    images = jax.random.normal(jax.random.key(0), (4, 6))
    _, params = init(jax.random.key(1), (-1, 6))
    empirical = nt.empirical_ntk_fn(apply, implementation=1)(images, None, params)
    np.testing.assert_allclose(empirical, kernel(images, None, "ntk"), rtol=0.15, atol=0.05)


def test_tensorflow_is_not_imported():
    code = "import sys, kernel.compat; sys.exit('tensorflow' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
