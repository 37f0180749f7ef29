"""Cases of the operator table: shapes, looking up and putting, sizes, values made from nothing."""

import torch
from torch import Tensor
from torch.nn import functional as F

from tests.bridge.operator_case import IMAGE, Case


def in_place(x: Tensor) -> Tensor:
    y = x * 2
    y[:, 0] += 1.0
    y[:, 1:, ::2] = y[:, 1:, ::2].clamp_(max=0.5)
    return y.mul_(3.0)


def put(x: Tensor, values: Tensor) -> Tensor:
    y = x.clone()
    y[:, torch.tensor([3, 0])] = values
    return y


def masked_put(x: Tensor) -> Tensor:
    y = x * 2
    y[x > 0.5] = 3.0
    y[:, torch.tensor([True, False, True, False])] = 0.5
    return y


CASES: dict[str, Case] = {
    # shapes
    "view": Case(lambda x: x.view(x.shape[0], -1, 3).reshape(-1, 3) * 2),
    "flatten": Case(lambda x: x.flatten(1).unflatten(1, (2, -1)) * 2),
    "permute": Case(lambda x: x.permute(0, 2, 3, 1).contiguous().transpose(1, -1) * 2),
    "transposed": Case(lambda x, w: x @ w.T, (2, 5), [(3, 5)]),
    "squeeze": Case(lambda x: x.unsqueeze(1).squeeze(1).unsqueeze(-1).squeeze() * 2),
    "squeeze-dims": Case(lambda x: torch.squeeze(x[:, :1], (1, 2)).squeeze(0) * 2),
    "expand": Case(lambda x, w: x + w.expand(x.shape[0], -1, 7, 6), IMAGE, [(1, 4, 1, 1)]),
    "expand-as": Case(lambda x, w: w.expand_as(x) * x, IMAGE, [(6,)]),
    "repeat": Case(lambda x: x.repeat(1, 2, 1, 3) * 2),
    "select-slice": Case(lambda x: x[:, 1, ::2, -3:] + x.select(-1, 2)[:, 0, :4, None]),
    "cat-stack": Case(lambda x: torch.cat([x, x * 2], 1) + torch.stack([x, x], 2).flatten(1, 2)),
    "split": Case(lambda x: x.split(3, -2)[2] * x.split([2, 1, 4], 2)[1]),
    "chunk-unbind": Case(lambda x: x.chunk(4, 3)[2] + torch.unbind(x, 3)[0].unsqueeze(-1)),
    "flip": Case(lambda x: x.flip(2, 3) * 2),
    "pad": Case(lambda x: F.pad(x, (1, 2, -1, 0), value=1.5)),
    "pad-reflect": Case(lambda x: F.pad(x, (1, 2, 2, 1), "reflect")),
    "pad-replicate": Case(lambda x: F.pad(x, (1, 2, 2, 1), "replicate")),
    "pad-circular": Case(lambda x: F.pad(x, (1, 2, 2, 1), "circular")),
    "in-place": Case(in_place),
    "detach": Case(lambda x: x * x.detach()),
    "dtypes": Case(lambda x: x.double() * torch.ones(6, dtype=torch.int32).to(torch.float16)),
    "sizes": Case(lambda x: x * (x.shape[0] * 2 + 1) / ((x.shape[0] + 3) // 2 - x.shape[0] % 2)),
    "size-ratio": Case(lambda x: x * (x.shape[0] / 4) * -x.shape[0]),
    "makers": Case(
        lambda x: x * torch.ones(x.shape[0], 1, 1, 1) + torch.zeros(6) + torch.full((6,), 2.0)
    ),
    "likes": Case(lambda x: x + torch.ones_like(x) + torch.zeros_like(x) * torch.full_like(x, 2.0)),
    "arange": Case(
        lambda x: x * torch.arange(6) + torch.arange(1, 7) - torch.arange(0.0, 3.0, 0.5)
    ),
    "roll": Case(lambda x: x.roll((1, -2), (2, 3)) * x),
    "roll-flat": Case(lambda x: x.roll(5) * x),
    "tril": Case(lambda x: x.tril() + x.triu(1) * 2),
    "diagonal": Case(lambda x: x.diagonal(1, 2, 3) + torch.diag_embed(x[:, 0, :5, 0]).sum(1, True)),
    "tensor-unfold": Case(lambda x: x.unfold(2, 3, 2).unfold(3, 2, 1) * 2),
    "pixel-shuffle": Case(lambda x: F.pixel_shuffle(x, 2) * 2),
    "pixel-unshuffle": Case(lambda x: F.pixel_unshuffle(x, 2) * 2, (2, 3, 4, 6)),
    "channel-shuffle": Case(lambda x: F.channel_shuffle(x, 2) * x),
    "axes": Case(
        lambda x: x.movedim(1, -1).swapaxes(1, 2).unflatten(1, (2, 3)).narrow(1, 0, 1).flatten(1, 2)
    ),
    "parts": Case(
        lambda x: x.tensor_split(3, 2)[2] * x.chunk(3, 2)[0][:, :, :2] * x.mT.mT[:, :, :2]
    ),
    "joined": Case(
        lambda x: (
            torch.hstack([x, x]).tile(1, 1, 2, 1) * x.repeat_interleave(2, 1).repeat(1, 1, 2, 1)
        )
    ),
    "rot90": Case(lambda x: torch.rot90(x, 1, (2, 3)) * 2),
    "meshgrid": Case(
        lambda x: (
            x * torch.stack(torch.meshgrid(torch.arange(7), torch.arange(6), indexing="ij")).sum(0)
        )
    ),
    # looking up and putting
    "index": Case(lambda x: x[:, [2, 0, 0]] * 2),
    "index-pairs": Case(lambda x: x[:, [[2], [0]], 1:, [[1, -1, 3]]] * 2),
    "index-by-image": Case(lambda x: x[torch.arange(x.shape[0]), x[:, :, 0, 0].argmax(1)] * 2),
    "index-select": Case(lambda x: torch.index_select(x, 1, torch.tensor([3, 0, 0])) * 2),
    "gather": Case(lambda x: torch.gather(x, 1, (x[:, :2, 1:, :3] > 0).long() * 3) * 2),
    "index-put": Case(lambda x: put(x, x[:, 1:3] * 3)),
    "index-put-pairs": Case(
        lambda x: x.index_put(
            (torch.arange(x.shape[0]), x[:, :, 0, 0].argmin(1)), x[:, 0] * 2, accumulate=True
        )
    ),
    "masked-put": Case(masked_put),
    "index-add": Case(
        lambda x: (
            x.index_add(1, torch.tensor([0, 0]), x[:, :2] * x[:, 1:3])
            + x.index_copy(1, torch.tensor([3]), x[:, :1]).index_fill(2, torch.tensor([1]), 2.0)
        )
    ),
    "scatter": Case(
        lambda x: x.scatter(1, (x[:, :1, 1:, :3] > 0).long() * 3, x[:, 1:2, 1:, 3:] * 2)
    ),
    "scatter-value": Case(lambda x: x.scatter(1, x.argmax(1, keepdim=True), 2.0) * x),
    "scatter-add": Case(lambda x: x.scatter_add(1, (x[:, :3] > 0).long(), x[:, 1:] ** 2)),
    "embedding": Case(
        lambda x, w: F.embedding((x > 0).long() + (x > 1), w) * x[..., None], (2, 4), [(3, 5)]
    ),
    "embedding-padding": Case(
        lambda x, w: F.embedding((x > 0).long(), w, padding_idx=0) + x[..., None], (2, 4), [(3, 5)]
    ),
    "one-hot": Case(lambda x: F.one_hot(x.argmax(1), 4) * x.sum(1)[..., None]),
    "topk": Case(lambda x: x.topk(2, 1).values * (x.topk(3, 1, largest=False).indices[:, :2] + 1)),
    "sort": Case(
        lambda x: (
            torch.sort(torch.round(x), stable=True, dim=1).values * x.argsort(2, descending=True)
        )
    ),
    "sort-plain": Case(lambda x: x.sort(-1).values * 2),
    "argmax": Case(lambda x: x * x.argmax(1, keepdim=True) + x.argmin(2)[:, :, None]),
    "argmax-all": Case(lambda x: x * x.argmax() + x.argmin()),
    # sizes
    "size-arithmetic": Case(
        lambda x: x * torch.sym_max(x.shape[0], 3) / torch.sym_min(x.shape[0], 3)
    ),
    "size-power": Case(lambda x: x * x.shape[0] ** 2),
    "batch-sized": Case(
        lambda x: (
            torch.zeros(x.shape[0], 6)[:, None, None]
            + x * torch.scalar_tensor(x.shape[0])
            + x * torch.empty(x.shape[0], 1, 1, 1).fill_(2.0)
            + x.new_full((x.shape[0], 1, 1, 1), 1.5)
        )
    ),
    "batch-aranges": Case(
        lambda x: (
            x * torch.arange(x.shape[0])[:, None, None, None]
            + torch.arange(1, x.shape[0] + 1)[:, None, None, None]
            - torch.arange(0.0, x.shape[0] / 2, 0.5)[:, None, None, None]
        )
    ),
    "tables": Case(
        lambda x: x * torch.sin(torch.arange(6) * 0.1) + torch.linspace(0, 1, 6) + torch.eye(7, 6)
    ),
    "index-tables": Case(
        lambda x: x[:, :, torch.triu_indices(5, 5)[0], torch.tril_indices(5, 5)[0]]
    ),
    "new": Case(lambda x: x + x.new_tensor([1.0] * 6) * x.new_ones(6) + torch.scalar_tensor(2.0)),
}
