"""Cases of the operator table: convolution, normalisation, products, pooling, resizing."""

import functools
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from tests.bridge.operator_case import IMAGE, Case, at_kinks

VIDEO = (2, 3, 3, 4, 5)


def conv(*sizes: int, rank: int = 2, bias: bool = True, shape: Sequence[int] = IMAGE, **k) -> Case:
    parameters = [sizes, sizes[:1]] if bias else [sizes]
    call = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[rank]
    return Case(functools.partial(call, **k), shape, parameters)


def transposed(
    *sizes: int, rank: int = 2, bias: bool = True, shape: Sequence[int] = IMAGE, **k
) -> Case:
    outputs = sizes[1] * k.get("groups", 1)
    call = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}[rank]
    return Case(functools.partial(call, **k), shape, [sizes, [outputs]] if bias else [sizes])


def resize(shape: Sequence[int] = IMAGE, **k) -> Case:
    return Case(functools.partial(F.interpolate, **k), shape)


def attention(shape: Sequence[int] = (2, 4, 5, 6), **k) -> Case:
    return Case(
        lambda x: F.scaled_dot_product_attention(x, x.sin(), x.cos() * x[..., :1], **k), shape
    )


def grouped_attention(x: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(x, x[:, :2].sin(), x[:, 2:] * 2, enable_gqa=True)


def max_pool_places(x: Tensor) -> Tensor:
    values, places = F.max_pool2d(torch.round(x), 3, 2, 1, return_indices=True)
    return values * (places + 1)


def unpooled(x: Tensor) -> Tensor:
    values, places = F.max_pool2d(x, 2, return_indices=True)
    return F.max_unpool2d(values * 2, places, [2, 2])


# Attention masks; no source is seen from the second target of the first.
KEPT = torch.tensor([[True, False, True, False, True], [False] * 5, *[[True] * 5] * 3])
ADDED = torch.linspace(-2.0, 2.0, 25).reshape(5, 5)
MEAN, VARIANCE = torch.tensor([0.1, -0.2, 0.3, 0.0]), torch.tensor([1.0, 0.5, 2.0, 0.1])


CASES: dict[str, Case] = {
    # convolution, products, attention
    "conv": conv(5, 4, 3, 3),
    "conv-no-bias": conv(5, 4, 3, 3, bias=False),
    "conv-stride-padding": conv(5, 4, 3, 2, stride=(2, 1), padding=(1, 2)),
    "conv-1x1-stride": conv(5, 4, 1, 1, stride=2),
    "conv-same": conv(5, 4, 3, 3, padding="same"),
    "conv-same-even": conv(5, 4, 4, 2, padding="same"),
    "conv-valid": conv(5, 4, 3, 3, padding="valid"),
    "conv-dilation": conv(5, 4, 3, 3, padding=2, dilation=2),
    "conv-groups": conv(6, 2, 3, 3, padding=1, groups=2),
    "conv-depthwise": conv(8, 1, 3, 3, padding=1, groups=4),
    "conv-depthwise-strided": conv(4, 1, 3, 2, stride=(2, 1), padding=(1, 2), dilation=2, groups=4),
    "conv-small-image": conv(5, 4, 3, 3, padding=1, shape=(2, 4, 2, 2)),
    "conv-small-stride": conv(5, 4, 3, 3, padding=1, stride=2, shape=(2, 4, 2, 1)),
    "conv-small-same": conv(5, 4, 4, 4, padding="same", shape=(2, 4, 3, 3)),
    "conv-small-dilation": conv(5, 4, 3, 3, padding=2, dilation=2, shape=(2, 4, 4, 4)),
    "conv1d": conv(5, 4, 3, rank=1, padding=1, shape=(2, 4, 7)),
    "conv1d-same": conv(5, 4, 3, rank=1, padding="same", shape=(2, 4, 7)),
    "conv3d": conv(5, 4, 3, 3, 3, rank=3, padding=1, shape=(2, 4, 4, 4, 4)),
    "conv3d-same": conv(5, 4, 3, 3, 3, rank=3, padding="same", shape=(2, 4, 4, 4, 4)),
    "linear": Case(F.linear, (2, 3, 6), [(5, 6), (5,)]),
    "linear-no-bias": Case(F.linear, (2, 6), [(5, 6)]),
    "matmul": Case(torch.matmul, (2, 3, 6), [(6, 5)]),
    "mm": Case(lambda x, w: torch.mm(x, w.t()), (2, 6), [(5, 6)]),
    "bmm": Case(lambda x: torch.bmm(x, x.transpose(1, 2)), (2, 3, 6)),
    "addmm": Case(lambda x, w, b: torch.addmm(b, x, w, beta=0.5, alpha=2), (2, 6), [(6, 5), (5,)]),
    "baddbmm": Case(lambda x: torch.baddbmm(x, x, x), (2, 3, 3)),
    "transposed": transposed(4, 5, 3, 3),
    "transposed-stride": transposed(4, 5, 3, 2, stride=(2, 3), padding=1, output_padding=(1, 0)),
    "transposed-groups": transposed(4, 3, 3, 3, groups=2, stride=2, bias=False),
    "transposed-dilation": transposed(4, 5, 3, 3, dilation=2, padding=3),
    "transposed-1d": transposed(4, 5, 4, rank=1, stride=2, padding=1, shape=(2, 4, 7)),
    "transposed-3d": transposed(3, 2, 3, 2, 1, rank=3, stride=2, shape=(2, 3, 2, 3, 3)),
    "einsum": Case(lambda x, w: torch.einsum("bchw, oc -> bohw", x, w), IMAGE, [(5, 4)]),
    "einsum-ellipsis": Case(lambda x, w: torch.einsum("...i,ij", x, w), IMAGE, [(6, 5)]),
    "einsum-size-1": Case(lambda x, w: torch.einsum("b...w,cw->bc...", x, w), IMAGE, [(5, 1)]),
    "einsum-gram": Case(lambda x: torch.einsum("bchw,bdhw->bcd", x, x)),
    "bilinear": Case(lambda x, w, b: F.bilinear(x, x[..., :3], w, b), (2, 3, 6), [(5, 6, 3), (5,)]),
    "bilinear-no-bias": Case(lambda x, w: F.bilinear(x, x.sin(), w), (2, 6), [(5, 6, 6)]),
    "matrix-vector": Case(
        lambda x, w, v: torch.mv(w, v) * x + torch.addmv(v, w, v, beta=0.5) + torch.dot(v, v),
        (2, 6),
        [(6, 6), (6,)],
    ),
    "outer": Case(lambda x, w: x @ torch.outer(w, w) + torch.inner(x, w)[..., None], IMAGE, [(6,)]),
    "cdist": Case(lambda x: torch.cdist(x, x[:, :3] * 1.5), (2, 5, 6)),
    "cdist-zero": Case(lambda x: torch.cdist(torch.round(x), torch.round(x), p=2.0), (2, 4, 2)),
    "cdist-1": Case(lambda x: torch.cdist(x, x[:, :3] * 1.5, p=1.0), (2, 5, 6)),
    "distances": Case(
        lambda x: F.cosine_similarity(x, x.sin(), -1) + F.pairwise_distance(x, x.sin())
    ),
    "attention": attention(),
    "attention-rank-3": attention((2, 5, 6)),
    "attention-scale": attention(scale=0.3),
    "attention-causal": attention(is_causal=True),
    "attention-kept": attention(attn_mask=KEPT),
    "attention-added": attention(attn_mask=ADDED),
    "attention-grouped": Case(grouped_attention, (2, 4, 5, 6)),
    "tensordot": Case(lambda x, w: torch.tensordot(x, w, 1), IMAGE, [(6, 3)]),
    # normalisation and softmax
    "batch-norm-of-weights": Case(
        lambda x, w, g: (
            x.mean((2, 3)) @ F.batch_norm(w[None], None, None, g, None, True, 0.0, 1e-5)[0]
        ),
        parameters=[(4, 6), (4,)],
    ),
    "batch-norm": Case(
        lambda x, w, b: F.batch_norm(x, MEAN.to(x), VARIANCE.to(x), w, b, eps=1e-3),
        IMAGE,
        [(4,), (4,)],
    ),
    "batch-norm-plain": Case(lambda x: F.batch_norm(x, MEAN.to(x), VARIANCE.to(x)), (3, 4)),
    "layer-norm": Case(lambda x, w, b: F.layer_norm(x, (7, 6), w, b), IMAGE, [(7, 6), (7, 6)]),
    "layer-norm-plain": Case(lambda x: F.layer_norm(x, (6,), eps=1e-2)),
    "group-norm": Case(lambda x, w, b: F.group_norm(x, 2, w, b), IMAGE, [(4,), (4,)]),
    "group-norm-plain": Case(lambda x: F.group_norm(x, 4)),
    "softmax": Case(lambda x: F.softmax(x, 1)),
    "softmax-dtype": Case(lambda x: F.softmax(x, 1, dtype=torch.float64)),
    "log-softmax": Case(lambda x: F.log_softmax(x, -1)),
    "logsumexp": Case(lambda x: torch.logsumexp(x, (1, 2))),
    "normalize": Case(lambda x: F.normalize(x, dim=1)),
    "dropout-off": Case(lambda x: F.dropout2d(F.dropout(x, 0.5, False), 0.5, False) * 2),
    "instance-norm": Case(
        lambda x, w, b: F.instance_norm(x, None, None, w, b), IMAGE, [(4,), (4,)]
    ),
    "instance-norm-1d": Case(lambda x: F.instance_norm(x, eps=1e-3), (2, 4, 7)),
    "instance-norm-running": Case(
        lambda x, w, b: F.instance_norm(x, MEAN.to(x), VARIANCE.to(x), w, b, False),
        IMAGE,
        [(4,), (4,)],
    ),
    "rms-norm": Case(lambda x, w: F.rms_norm(x, (7, 6), w, eps=1e-3), IMAGE, [(7, 6)]),
    "rms-norm-plain": Case(lambda x: F.rms_norm(x * 1e-3, (6,))),
    "local-response-norm": Case(lambda x: F.local_response_norm(x, 3, 0.1, 0.75, 2.0)),
    "local-response-1d": Case(lambda x: F.local_response_norm(x, 2), (2, 4, 7)),
    "softmin": Case(lambda x: F.softmin(x, 1) + torch.special.log_softmax(x, 2)),
    "log-softmax-dtype": Case(lambda x: F.log_softmax(x, 1, dtype=torch.float64)),
    "normalize-1": Case(lambda x: F.normalize(x, p=1.0, dim=1) + F.normalize(x, p=3.0, dim=2)),
    "dropouts-off": Case(lambda x: F.alpha_dropout(x, 0.5, False) * F.dropout3d(x, 0.5, False)),
    # pooling
    "max-pool": Case(lambda x: F.max_pool2d(x, 2)),
    "max-pool-ties": Case(lambda x: F.max_pool2d(torch.round(x), 3, 1)),
    # -0.3 and 0.3 about 0: which of the two has the gradient
    "max-pool-ties-of-kinks": at_kinks(lambda x: F.max_pool1d(x.abs()[:, None], 3, 1)[:, 0]),
    "max-pool-relu": Case(lambda x: F.max_pool2d(F.relu(x - 1), 2)),
    "max-pool-padding": Case(lambda x: F.max_pool2d(x, 3, 2, 1)),
    "max-pool-dilation": Case(lambda x: F.max_pool2d(x, 2, 1, 0, 2)),
    "max-pool-ceil": Case(lambda x: F.max_pool2d(x, 3, 2, 1, ceil_mode=True)),
    "max-pool1d": Case(lambda x: F.max_pool1d(x, 2), (2, 4, 6)),
    "max-pool3d": Case(lambda x: F.max_pool3d(x, 2), (2, 3, 4, 4, 4)),
    "avg-pool": Case(lambda x: F.avg_pool2d(x, (2, 3))),
    "avg-pool-padding": Case(lambda x: F.avg_pool2d(x, 3, 2, 1)),
    "avg-pool-no-count": Case(lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False)),
    "avg-pool-ceil": Case(lambda x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True)),
    "avg-pool-ceil-no-count": Case(lambda x: F.avg_pool2d(x, 3, 2, 1, True, False)),
    "avg-pool-divisor": Case(lambda x: F.avg_pool2d(x, 2, divisor_override=3)),
    "avg-pool1d": Case(lambda x: F.avg_pool1d(x, 3, 1, 1), (2, 4, 6)),
    "avg-pool3d": Case(lambda x: F.avg_pool3d(x, 2), (2, 3, 4, 4, 4)),
    "adaptive-1": Case(lambda x: F.adaptive_avg_pool2d(x, 1)),
    "adaptive-uneven": Case(lambda x: F.adaptive_avg_pool2d(x, (3, 4))),
    "adaptive-larger": Case(lambda x: F.adaptive_avg_pool2d(x, (9, 6))),
    "adaptive-1d": Case(lambda x: F.adaptive_avg_pool1d(x, 4), (2, 4, 6)),
    "adaptive-3d": Case(lambda x: F.adaptive_avg_pool3d(x, 2), (2, 3, 3, 4, 5)),
    "max-pool-places": Case(max_pool_places),
    "max-pool-places-1d": Case(lambda x: F.max_pool1d(x, 2, return_indices=True)[0], (2, 4, 6)),
    "max-pool-places-3d": Case(lambda x: F.max_pool3d(x, 2, return_indices=True)[0], VIDEO),
    "max-unpool": Case(unpooled),
    "adaptive-max": Case(lambda x: F.adaptive_max_pool2d(x, 1)),
    "adaptive-max-uneven": Case(lambda x: F.adaptive_max_pool2d(torch.round(x), (3, 4))),
    "adaptive-max-larger": Case(lambda x: F.adaptive_max_pool2d(x, (9, 6))),
    "adaptive-max-places": Case(
        lambda x: F.adaptive_max_pool2d(torch.round(x), (3, 4), return_indices=True)[1] * x.sum()
    ),
    "adaptive-max-1d": Case(lambda x: F.adaptive_max_pool1d(torch.round(x), 4), (2, 4, 6)),
    "adaptive-max-3d": Case(lambda x: F.adaptive_max_pool3d(torch.round(x), 2), VIDEO),
    "lp-pool": Case(lambda x: F.lp_pool2d(x.abs(), 3.0, 2) + F.lp_pool2d(x, 2.0, 3, 2)[..., :1]),
    "lp-pool1d": Case(lambda x: F.lp_pool1d(x, 2.0, 3, 1), (2, 4, 6)),
    "unfold": Case(lambda x: F.unfold(x, (2, 3), 2, 1, (2, 1))),
    "fold": Case(lambda x: F.fold(F.unfold(x, 3, padding=1) * 2, (7, 6), 3, padding=1)),
    # resizing
    "nearest": resize(scale_factor=2),
    "nearest-size": resize(size=(5, 9)),
    "nearest-fraction": resize(scale_factor=(1.3, 0.7)),
    "nearest-recomputed": resize(scale_factor=1.3, recompute_scale_factor=True),
    "nearest-1d": resize((2, 4, 7), size=9),
    "nearest-3d": resize(VIDEO, scale_factor=1.5),
    "nearest-exact": resize(size=(5, 9), mode="nearest-exact"),
    "nearest-exact-fraction": resize(scale_factor=(1.3, 0.7), mode="nearest-exact"),
    "nearest-exact-1d": resize((2, 4, 7), size=9, mode="nearest-exact"),
    "nearest-exact-3d": resize(VIDEO, size=4, mode="nearest-exact"),
    "bilinear-size": resize(size=(5, 9), mode="bilinear"),
    "bilinear-factor": resize(scale_factor=(1.3, 0.7), mode="bilinear"),
    "bilinear-corners": resize(size=(5, 9), mode="bilinear", align_corners=True),
    "bilinear-one": resize(size=1, mode="bilinear", align_corners=True),
    "bilinear-antialias": resize(size=(3, 9), mode="bilinear", antialias=True),
    "linear-1d": resize((2, 4, 7), size=9, mode="linear"),
    "linear-1d-corners": resize((2, 4, 7), size=9, mode="linear", align_corners=True),
    "trilinear": resize(VIDEO, scale_factor=2, mode="trilinear"),
    "trilinear-corners": resize(VIDEO, size=(2, 6, 4), mode="trilinear", align_corners=True),
    "bicubic": resize(size=(5, 9), mode="bicubic"),
    "bicubic-factor": resize(scale_factor=(1.3, 0.7), mode="bicubic"),
    "bicubic-corners": resize(size=(5, 9), mode="bicubic", align_corners=True),
    "bicubic-antialias": resize(size=(3, 9), mode="bicubic", antialias=True),
    "bicubic-antialias-corners": resize(
        size=(3, 9), mode="bicubic", antialias=True, align_corners=True
    ),
    "area": resize(size=(3, 4), mode="area"),
}
