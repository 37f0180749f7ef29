"""Small networks, each of one thing that people write by hand, for the bridge."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

CLASSES = 5
SHAPE = (3, 8, 8)
Forward = Callable[[Any, Tensor], Tensor]


class Net(nn.Module):
    """A convolution to 4 channels, what is tried, and a linear head over means of channels."""

    def __init__(self, function: Forward, width: int = 4, **parts: Any) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        for name, part in parts.items():
            if isinstance(part, Tensor) and not isinstance(part, nn.Parameter):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)
        self.head = nn.Linear(width, CLASSES)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        x = self.function(self, self.stem(x))
        return self.head(x.flatten(2).mean(2) if x.ndim > 2 else x)


def layer(*layers: nn.Module, width: int = 4) -> Net:
    return Net(lambda self, x: self.layers(x), width, layers=nn.Sequential(*layers))


def tokens(x: Tensor) -> Tensor:
    """(batch, channels, height, width) → (batch, height · width / 4, channels)."""
    return F.avg_pool2d(x, 2).flatten(2).transpose(1, 2)


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.linspace(-0.5, 0.7, math.prod(shape)).reshape(shape))


def in_place_views(self: Any, x: Tensor) -> Tensor:
    x = x.clone()
    first = x[:, :2]
    first.mul_(2).add_(self.shift[:2, None, None])
    x[:, 2:, ::2] -= first[:, :, ::2]
    x.view(x.shape[0], -1)[:, ::3] = 0.5
    return F.relu_(x)


def shifted(self: Any, x: Tensor) -> Tensor:
    """Channels shifted by a pixel, written into memory of their own."""
    out = torch.zeros_like(x)
    out[:, :2, :, 1:] = x[:, :2, :, :-1]
    out[:, 2:, 1:] = x[:, 2:, :-1]
    return self.mix(out)


def standardised(self: Any, x: Tensor) -> Tensor:
    weight = self.conv.weight
    weight = (weight - weight.mean((1, 2, 3), keepdim=True)) / (
        weight.std((1, 2, 3))[:, None, None, None] + 1e-5
    )
    return F.conv2d(x, weight, self.conv.bias, padding=1)


def coordinates(self: Any, x: Tensor) -> Tensor:
    rows, columns = torch.meshgrid(
        torch.linspace(-1, 1, 8), torch.linspace(-1, 1, 8), indexing="ij"
    )
    places = torch.stack([rows, columns]).expand(x.shape[0], -1, -1, -1)
    return self.conv(torch.cat([x, places], 1))


def sines(self: Any, x: Tensor) -> Tensor:
    x = tokens(x)
    places = torch.arange(x.shape[1]).unsqueeze(1)
    speeds = torch.exp(torch.arange(0, 4, 2) * (-math.log(10000.0) / 4))
    table = torch.zeros(x.shape[1], 4)
    table[:, 0::2], table[:, 1::2] = torch.sin(places * speeds), torch.cos(places * speeds)
    return self.mix(x + table).mean(1)


def class_token(self: Any, x: Tensor) -> Tensor:
    x = torch.cat([self.token.expand(x.shape[0], -1, -1), tokens(x)], 1)
    return self.block(x + self.places(self.ids))[:, 0]


def windows(self: Any, x: Tensor) -> Tensor:
    """Attention within windows of 4 × 4, whose axis 0 is not the batch, with a table of biases."""
    b = x.shape[0]
    x = x.reshape(b, 4, 2, 4, 2, 4).permute(0, 2, 4, 3, 5, 1).reshape(-1, 16, 4)
    q, k, v = self.qkv(torch.roll(x, 1, 1)).chunk(3, -1)
    bias = self.table[self.index.view(-1)].view(16, 16)
    x = (q @ k.transpose(-2, -1) * 0.5 + bias).softmax(-1) @ v
    return x.reshape(b, 4, 16, 4).mean((1, 2))


def sequence_first(self: Any, x: Tensor) -> Tensor:
    x = tokens(x).transpose(0, 1)
    return self.mha(x, x, x, need_weights=False)[0].mean(0)


def with_weights(self: Any, x: Tensor) -> Tensor:
    x = tokens(x)
    y, weights = self.mha(x, x, x, attn_mask=self.mask)
    return (y + weights @ x).mean(1)


def einsum_attention(self: Any, x: Tensor) -> Tensor:
    q, k = (torch.einsum("bchw,dc->bdhw", x, w) for w in (self.query, self.key))
    scores = torch.einsum("bdhw,bdij->bhwij", q, k).flatten(3).softmax(-1)
    return torch.einsum("bhwn,bcn->bchw", scores, x.flatten(2))


def unet(self: Any, x: Tensor) -> Tensor:
    deep = F.gelu(self.down(x))
    up = F.interpolate(deep, size=x.shape[-2:], mode="bilinear", align_corners=False)
    return torch.cat([self.up(deep), up, x], 1)


def recurrent(self: Any, x: Tensor) -> Tensor:
    return self.rnn(x.mean(2).transpose(1, 2))[0][:, -1]


def generalised_mean(self: Any, x: Tensor) -> Tensor:
    return x.clamp(min=1e-3).pow(self.power).mean((2, 3)).pow(1 / self.power) * self.scale


def cosine(self: Any, x: Tensor) -> Tensor:
    return F.linear(F.normalize(x.mean((2, 3))), F.normalize(self.weight)) * self.scale.exp()


def statistics(self: Any, x: Tensor) -> Tensor:
    x = x.flatten(2)
    parts = [x.std(2), x.amax(2), x.topk(3, 2).values.mean(2), x.sort(2).values[..., 5]]
    return torch.cat([*parts, x.norm(dim=2), x.logsumexp(2)], 1)


def depth(self: Any, x: Tensor) -> Tensor:
    for i, conv in enumerate(self.convs):
        x = x + self.gammas[i] * conv(x) * self.scales["two" if i else "one"]
    return x


def checkpointed(self: Any, x: Tensor) -> Tensor:
    return checkpoint(lambda y: torch.tanh(self.conv(y)), x, use_reentrant=False)


def table(self: Any, x: Tensor) -> Tensor:
    """A plain tensor that is no buffer, and one made on the spot."""
    return x * self.holder["kernel"] + torch.tensor([0.1, 0.2, 0.3, 0.4])[:, None, None]


def doubled(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    return output * 2


def hooked() -> nn.Module:
    net = layer(nn.Conv2d(4, 4, 1), nn.ReLU())
    net.stem.register_forward_hook(doubled)
    net.head.register_forward_pre_hook(lambda module, inputs: (inputs[0] + 1,))
    net.register_forward_hook(lambda module, inputs, output: output - output.mean(1, keepdim=True))
    return net


def operated() -> nn.Module:
    """A Sequential whose layers were exchanged, taken out and put in."""
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Dropout(), nn.Flatten(), nn.Linear(9, 9))
    net[1] = nn.Sequential(nn.LeakyReLU(), nn.Conv2d(4, 4, 3, groups=2))
    del net[2]
    net[-1] = nn.Linear(64, 7)
    net.append(nn.Linear(7, CLASSES)).insert(2, nn.Identity())
    return nn.Sequential(*net, *[nn.Tanh()])


def frozen_encoder() -> nn.Module:
    net = NETWORKS["encoder"]()
    net.get_submodule("encoder").requires_grad_(False)
    return net


def encoder(**k: Any) -> nn.Module:
    block = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True, **k)
    net = nn.TransformerEncoder(block, 2, enable_nested_tensor=False)
    return Net(lambda self, x: self.encoder(tokens(x)).mean(1), encoder=net)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "in-place views": lambda: Net(in_place_views, shift=parameter(4)),
    "shifted channels": lambda: Net(shifted, mix=nn.Conv2d(4, 4, 1)),
    "weight standardisation": lambda: Net(standardised, conv=nn.Conv2d(4, 4, 3)),
    "weight norm": lambda: layer(parametrizations.weight_norm(nn.Conv2d(4, 4, 3))),
    "spectral norm": lambda: layer(parametrizations.spectral_norm(nn.Conv2d(4, 4, 3))),
    "coordinates": lambda: Net(coordinates, conv=nn.Conv2d(6, 4, 1)),
    "table of sines": lambda: Net(sines, mix=nn.Linear(4, 4)),
    "class token": lambda: Net(
        class_token,
        token=parameter(1, 1, 4),
        places=nn.Embedding(17, 4),
        ids=torch.arange(17),
        block=nn.TransformerEncoderLayer(4, 2, 8, batch_first=True, norm_first=True),
    ),
    "windows": lambda: Net(
        windows, qkv=nn.Linear(4, 12), table=parameter(31), index=torch.arange(256) % 31
    ),
    "sequence first": lambda: Net(sequence_first, mha=nn.MultiheadAttention(4, 2)),
    "attention weights": lambda: Net(
        with_weights,
        mha=nn.MultiheadAttention(4, 2, batch_first=True, add_bias_kv=False),
        mask=torch.linspace(-1, 1, 256).reshape(16, 16),
    ),
    "encoder": lambda: encoder(activation="gelu"),
    "frozen encoder": frozen_encoder,
    "decoder": lambda: Net(
        lambda self, x: self.decoder(self.queries.expand(x.shape[0], -1, -1), tokens(x)).mean(1),
        decoder=nn.TransformerDecoderLayer(4, 2, 8, batch_first=True),
        queries=parameter(1, 3, 4),
    ),
    "einsum attention": lambda: Net(einsum_attention, query=parameter(2, 4), key=parameter(2, 4)),
    "up and down": lambda: Net(
        unet,
        width=10,
        down=nn.Conv2d(4, 4, 3, 2, 1, dilation=1, groups=2),
        up=nn.ConvTranspose2d(4, 2, 3, 2, 1, output_padding=1, groups=2),
    ),
    "norms": lambda: layer(
        nn.GroupNorm(2, 4),
        nn.InstanceNorm2d(4, affine=True),
        nn.ReLU6(),
        nn.LocalResponseNorm(2),
        nn.InstanceNorm2d(4, track_running_stats=True),
        nn.RMSNorm(8),
        nn.SiLU(),
        nn.LayerNorm([8, 8]),
        nn.Softplus(),
    ),
    "padding": lambda: layer(
        nn.Conv2d(4, 4, 3, padding="same", padding_mode="reflect"),
        nn.PReLU(4),
        nn.Conv2d(4, 4, (2, 3), padding=1, padding_mode="replicate", dilation=2),
        nn.Hardswish(),
        nn.ReflectionPad2d((1, 0, 0, 1)),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular", bias=False),
    ),
    "rearranged": lambda: layer(
        nn.PixelUnshuffle(2), nn.ChannelShuffle(4), nn.Conv2d(16, 8, 1), nn.PixelShuffle(2), width=2
    ),
    "patches": lambda: Net(
        lambda self, x: F.fold(self.mix(F.unfold(x, 2, stride=2).mT).mT, (8, 8), 2, stride=2),
        mix=nn.Linear(16, 16),
    ),
    "long short-term": lambda: Net(recurrent, width=3, rnn=nn.LSTM(4, 3, batch_first=True)),
    "gated": lambda: Net(recurrent, width=3, rnn=nn.GRU(4, 3, batch_first=True)),
    "generalised mean": lambda: Net(
        generalised_mean, power=nn.Parameter(torch.tensor(3.0)), scale=parameter(4)
    ),
    "cosine": lambda: Net(cosine, weight=parameter(4, 4), scale=nn.Parameter(torch.tensor(0.5))),
    "statistics": lambda: Net(statistics, width=24),
    "lists": lambda: Net(
        depth,
        convs=nn.ModuleList(nn.Conv2d(4, 4, 1) for _ in range(2)),
        gammas=nn.ParameterList([parameter(4, 1, 1), parameter(1)]),
        scales=nn.ParameterDict({"one": parameter(4, 1, 1), "two": parameter(1, 8)}),
    ),
    "called twice": lambda: Net(
        lambda self, x: self.conv(F.relu(self.conv(x))) + self.conv(x), conv=nn.Conv2d(4, 4, 1)
    ),
    "checkpointed": lambda: Net(checkpointed, conv=nn.Conv2d(4, 4, 1)),
    "plain tensors": lambda: Net(table, holder={"kernel": torch.linspace(0, 1, 8)}),
    "hooks": hooked,
    "operated": operated,
    "bilinear": lambda: Net(
        lambda self, x: self.mix(x.mean((2, 3)), x.amax((2, 3))), mix=nn.Bilinear(4, 4, 4)
    ),
    "blurred": lambda: Net(
        lambda self, x: F.conv2d(x, self.kernel.expand(4, -1, -1, -1), stride=2, groups=4),
        kernel=torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]]) / 10,
    ),
    "maximum of pieces": lambda: Net(
        lambda self, x: self.conv(x).unflatten(1, (4, 2)).max(2).values, conv=nn.Conv2d(4, 8, 1)
    ),
}
