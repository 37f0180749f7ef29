"""Cases of the operator table: activations at their kinks, arithmetic, reductions."""

import torch
from torch.nn import functional as F

from tests.bridge.operator_case import IMAGE, Case, at_kinks

A = torch.ops.aten


CASES: dict[str, Case] = {
    # activations, at their kinks
    "relu": at_kinks(F.relu),
    "relu-in-place": at_kinks(lambda x: F.relu_(x * 1)),
    "relu6": at_kinks(F.relu6),
    "hardtanh": at_kinks(lambda x: F.hardtanh(x, -2, 3)),
    "hardsigmoid": at_kinks(F.hardsigmoid),
    "hardswish": at_kinks(F.hardswish),
    "leaky-relu": at_kinks(lambda x: F.leaky_relu(x, 0.3)),
    "prelu": Case(lambda x, w: F.prelu(torch.round(x), w), IMAGE, [(4,)]),
    "prelu-one": Case(F.prelu, (2, 5), [(1,)]),
    "elu": at_kinks(lambda x: F.elu(x, 0.7)),
    "selu": at_kinks(F.selu),
    "celu": at_kinks(lambda x: F.celu(x, 0.5)),  # torch rounds 1/alpha to float32
    "softplus": at_kinks(lambda x: F.softplus(x, 2.0, 10.0)),
    "mish": at_kinks(F.mish),
    "gelu": at_kinks(F.gelu),
    "gelu-tanh": at_kinks(lambda x: F.gelu(x, approximate="tanh")),
    "silu": at_kinks(F.silu),
    "sigmoid": at_kinks(torch.sigmoid),
    "log-sigmoid": at_kinks(F.logsigmoid),
    "tanh": at_kinks(torch.tanh),
    "softsign": at_kinks(F.softsign),
    "clamp": at_kinks(lambda x: torch.clamp(x, -2.0, 3.0)),
    "clamp-low": at_kinks(lambda x: torch.clamp(x, min=0.0)),
    "clamp-tensor": at_kinks(lambda x: torch.clamp(x, torch.tensor(-2.0), torch.tensor(3.0))),
    "clamp-min": at_kinks(lambda x: x.clamp_min(0.5)),
    "clamp-max": at_kinks(lambda x: x.clamp_max(0.5)),
    "threshold": at_kinks(lambda x: F.threshold(x, 0.5, 9.0)),
    "abs": at_kinks(torch.abs),
    "maximum": at_kinks(lambda x: torch.maximum(x, -x)),
    "minimum": at_kinks(lambda x: torch.minimum(x, x * x)),
    "sign-floor": at_kinks(lambda x: x * torch.sign(x) + torch.floor(x)),
    "where": at_kinks(lambda x: torch.where(x > 0.5, x * x, -x)),
    "where-scalar": at_kinks(
        lambda x: torch.where(x >= 0.5, x, 0.0) + torch.where(x < 0.3, 1.0, x)
    ),
    "masked-fill": at_kinks(
        lambda x: x.masked_fill((x < 0.3) | (x == 2.0), 7.0).masked_fill(x > 6, torch.tensor(0.0))
    ),
    "compare": at_kinks(
        lambda x: x * (x <= 0.3) + x * x * ((x != 1.0) & ~(x > x * x)) + x * (x < 7) * (x == 3)
    ),
    "logical": at_kinks(
        lambda x: x * torch.logical_and(x > 0, torch.logical_not(torch.logical_or(x < 3, x > 6)))
    ),
    "compare-tensors": at_kinks(
        lambda x: (
            x * (x < -x)
            + x * (x >= x * x)
            + x * (x == x * x)
            - x * (x != -x) * (x <= x * 2) * (x > -x)
        )
    ),
    "rrelu": at_kinks(F.rrelu),
    "hardshrink": at_kinks(lambda x: F.hardshrink(x) + F.softshrink(x, 0.3) + F.tanhshrink(x)),
    "glu": Case(lambda x: F.glu(x, 1)),
    "fmax": at_kinks(lambda x: torch.fmax(x, -x) + torch.fmin(x, x * x)),
    "max-tensors": at_kinks(lambda x: torch.max(x, -x) - torch.min(x, x * x)),
    "xor": at_kinks(lambda x: x * torch.logical_xor(x > 0, x > 3) + x * ((x > 1) ^ (x > 2))),
    "bits": at_kinks(
        lambda x: x * (((x.long() & 6) | 1) ^ 8) + x * ~(x.long() ^ torch.tensor(3) | x.long())
    ),
    "not-finite": at_kinks(
        lambda x: torch.nan_to_num(x / (x != 0), 3.0, 4.0, 5.0) * torch.isfinite(x) + torch.isinf(x)
    ),
    "steps": at_kinks(lambda x: x - x.trunc() + x.frac() + x.ceil() * x + x.round() + x.sgn()),
    "any": at_kinks(lambda x: x * (x > 6).any() * (x > 3).any(1, keepdim=True)),
    "all": at_kinks(lambda x: x * (x > 3).all((0, 1)) + x * (x > -9).all(1, keepdim=True)),
    "lerp": at_kinks(lambda x: torch.lerp(x, x * x, 0.3) + torch.lerp(x, -x, x * x)),
    # arithmetic
    "add-alpha": Case(lambda x, w: torch.add(x, w, alpha=2), IMAGE, [(7, 6)]),
    "sub-alpha": Case(lambda x, w: torch.sub(x, w, alpha=0.5), IMAGE, [(7, 1)]),
    "scalars": Case(lambda x: (2 - x) * 3 / 4 + 1 - (x - 0.5)),
    "rsub": Case(lambda x: torch.rsub(x, 3.0, alpha=2)),
    "div": Case(lambda x, w: x / w, IMAGE, [(6,)]),
    "div-integers": Case(lambda x: x * (torch.arange(6) / torch.tensor(4))),
    "powers": at_kinks(lambda x: x**2 + x**3.0 + torch.square(x)),
    "pow-fraction": Case(lambda x: x**1.5 + 2**x, positive=True),
    "pow-tensor": Case(lambda x: x**x, positive=True),
    "exp": Case(lambda x: torch.exp(x) + torch.expm1(x) + torch.erf(x)),
    "log": Case(lambda x: torch.log(x) + torch.log1p(x), positive=True),
    "roots": Case(lambda x: torch.sqrt(x) + torch.rsqrt(x) - torch.reciprocal(x), positive=True),
    "waves": Case(lambda x: torch.sin(x) - torch.cos(-x)),
    "addcmul": Case(
        lambda x, w: torch.addcmul(x, w, x, value=2) + torch.addcdiv(x, x, w), IMAGE, [(6,)]
    ),
    "scalar-rows": Case(
        lambda x: A.div.Scalar(A.mul.Scalar(A.add.Scalar(A.sub.Scalar(x, 2, 3), 1), 3), 4)
    ),
    "integers-and-fractions": Case(
        lambda x: x + (x.long() * 0.5 + 0.25 - x.long() / 3.0) ** 2 - torch.exp(x.long() / 2)
    ),
    "integer-functions": Case(lambda x: x * torch.exp(x.long()) + torch.sin(x.long().sum(1, True))),
    "scalar-tensors": Case(lambda x: x.half() * torch.tensor(1.5) + torch.tensor(2.0) * x.half()),
    "floor-divide": Case(
        lambda x: x * (x.detach() // 0.3 + x.detach() // -x.sin().detach() + x.long() // 2)
    ),
    "div-rounded": Case(
        lambda x: (
            x * torch.div(x, 0.3, rounding_mode="trunc")
            + torch.div(x.long() * 3, 2, rounding_mode="trunc")
            + torch.div((x * 9).long(), (x * 2).long().abs() + 1, rounding_mode="trunc")
            + torch.div(x, 2.0, rounding_mode=None)
        )
    ),
    "remainder": Case(
        lambda x, w: x % 0.7 + x % -w + 3 % w.detach() + torch.remainder(x.long(), 3), IMAGE, [(6,)]
    ),
    "fmod": Case(lambda x, w: torch.fmod(x, 0.7) + torch.fmod(x, -w), IMAGE, [(6,)]),
    "powers-more": Case(
        lambda x: torch.exp2(x) + torch.float_power(x, 2) + x.pow(-1) + x**0.5, positive=True
    ),
    "logs": Case(lambda x: torch.log2(x) + torch.log10(x) + torch.xlogy(x, x), positive=True),
    "trigonometry": Case(
        lambda x: torch.tan(x / 9) + torch.asin(x / 9) + torch.acos(x / 9) + torch.atan(x)
    ),
    "hyperbolic": Case(
        lambda x: torch.sinh(x) + torch.cosh(x) + torch.asinh(x) + torch.atanh(x / 9)
    ),
    "acosh-atan2": Case(lambda x: torch.acosh(x + 1) + torch.atan2(x, 1 + x), positive=True),
    "special": Case(
        lambda x: torch.erfinv(x / 9) + torch.erfc(x) + torch.lgamma(x),
        positive=True,
    ),
    # reductions
    "mean": Case(lambda x: x.mean((2, 3))),
    "mean-keep": Case(lambda x: x - x.mean(1, keepdim=True)),
    "mean-all": Case(lambda x: x * x.mean()),
    "sum": Case(lambda x: x.sum(-1) + x.sum((1,)).sum(-2, keepdim=True).mean()),
    "sum-all": Case(lambda x: x * x.sum()),
    "var": Case(lambda x: x.var((2, 3)) + x.var(1, unbiased=False).mean()),
    "amax": Case(lambda x: torch.round(x).amax((2, 3)) - torch.round(x).amin(-1).sum()),
    "max-dim": Case(lambda x: x.max(1).values + x.max(1, keepdim=True).values[:, 0]),
    "prod": Case(lambda x: x.prod(1) * torch.round(x[:, 0]).prod(-1, keepdim=True)),
    "prod-all": Case(lambda x: x * x[:, 0, 0].prod()),
    "cumsum": Case(lambda x: x.cumsum(1) + x.cumprod(2)),
    "cumsum-dtype": Case(lambda x: x.cumsum(-1, dtype=torch.float64) * x.diff(dim=1)[:, :1]),
    "std": Case(lambda x: x.std((2, 3)) + x.std(1, unbiased=False).mean((1, 2))[:, None]),
    "std-zero": Case(lambda x: (x[:, :1] + torch.zeros(4, 1, 1)).std(1)),
    "std-all": Case(lambda x: x * x.std() + x.var()),
    "var-mean": Case(lambda x: torch.var_mean(x, 1)[0] + torch.std_mean(x, (1,), correction=0)[1]),
    "max-all": Case(lambda x: x * torch.round(x).max() + torch.round(x).min()),
    "min-dim": Case(lambda x: torch.round(x).min(1).values + x.min(1, keepdim=True).values[:, 0]),
    "aminmax": Case(lambda x: torch.aminmax(torch.round(x), dim=1)[1]),
    "norms": Case(
        lambda x: (
            x.norm(dim=1)
            + x.norm(p=1, dim=1)
            + torch.linalg.vector_norm(torch.round(x), float("inf"), 1)
            + torch.linalg.vector_norm(torch.round(x), -float("inf"), 1)
            + torch.linalg.vector_norm(torch.round(x), 0, 1)
        )
    ),
    "norm-zero": Case(lambda x: (x * 0).norm(dim=1) + torch.linalg.vector_norm(x, 3, (1,))),
    "norm-dtype": Case(lambda x: torch.linalg.vector_norm(x, dim=1, dtype=torch.float64)),
}
