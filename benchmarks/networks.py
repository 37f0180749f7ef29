"""Torchvision's classifiers by name, small images and 10 classes, with nothing left at 0 or 1.

From a name and a seed to a network in eval mode whose weights, BatchNorm statistics and layer
scales are random, so that an operator that is skipped or misread shows in the logits.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from trainer.randomness import seeded
from trainer.torchvision_compat import torchvision

CLASSES = 10
models = torchvision.models


class Entry(NamedTuple):
    """A network and the side of its images in pixels."""

    build: Callable[[], nn.Module]
    side: int


def _plain(name: str, side: int = 64, **arguments: object) -> Entry:
    return Entry(lambda: getattr(models, name)(num_classes=CLASSES, **arguments), side)


def _maxvit_t() -> nn.Module:
    """Torchvision's builder with windows of 2 × 2: its own, of 7 × 7, need images of 224 px."""
    return models.MaxVit(
        input_size=(64, 64),
        stem_channels=64,
        partition_size=2,
        block_channels=[64, 128, 256, 512],
        block_layers=[2, 2, 5, 2],
        head_dim=32,
        stochastic_depth_prob=0.2,
        num_classes=CLASSES,
    )


# Auxiliary heads give no logits in eval mode: a mirror refuses weights that nothing uses.
_WITHOUT_AUXILIARY = {"aux_logits": False, "init_weights": False}

NETWORKS: Mapping[str, Entry] = MappingProxyType(
    {
        "alexnet": _plain("alexnet"),
        "vgg11": _plain("vgg11"),
        "vgg11_bn": _plain("vgg11_bn"),
        "resnet18": _plain("resnet18"),
        "resnet50": _plain("resnet50"),
        "wide_resnet50_2": _plain("wide_resnet50_2"),
        "resnext50_32x4d": _plain("resnext50_32x4d"),
        "densenet121": _plain("densenet121"),
        "squeezenet1_1": _plain("squeezenet1_1"),
        "googlenet": _plain("googlenet", **_WITHOUT_AUXILIARY),
        "inception_v3": _plain("inception_v3", 96, **_WITHOUT_AUXILIARY),
        "mobilenet_v2": _plain("mobilenet_v2"),
        "mobilenet_v3_small": _plain("mobilenet_v3_small"),
        "mobilenet_v3_large": _plain("mobilenet_v3_large"),
        "mnasnet0_5": _plain("mnasnet0_5"),
        "shufflenet_v2_x0_5": _plain("shufflenet_v2_x0_5"),
        "efficientnet_b0": _plain("efficientnet_b0"),
        "regnet_x_400mf": _plain("regnet_x_400mf"),
        "regnet_y_400mf": _plain("regnet_y_400mf"),
        "convnext_tiny": _plain("convnext_tiny"),
        "vit_b_16": _plain("vit_b_16", 32, image_size=32),
        "swin_t": _plain("swin_t"),
        "swin_v2_t": _plain("swin_v2_t"),
        "maxvit_t": Entry(_maxvit_t, 64),
    }
)


def network(name: str, seed: int) -> nn.Module:
    """A network in eval mode; torch's global generator is left as it was.

    Args:
        name: a row of NETWORKS.
        seed: of every random number in it.
    """
    rng = np.random.default_rng(seed)
    with seeded(rng, torch.device("cpu")):
        module = NETWORKS[name].build()
        for part in module.modules():
            if isinstance(part, nn.modules.batchnorm._BatchNorm):
                assert part.running_mean is not None
                assert part.running_var is not None
                part.running_mean.normal_(0.0, 0.1)
                part.running_var.uniform_(0.5, 1.5)
        for name, parameter in module.named_parameters():
            alike = bool((parameter == parameter.flatten()[0]).all())
            if alike or parameter.ndim == 1:  # scales, biases, a head that begins at zero
                level = float(parameter.ndim == 1 and name.endswith("weight"))
                nn.init.normal_(parameter, level, 0.2)
    return module.eval()
