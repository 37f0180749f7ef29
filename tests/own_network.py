"""A person's own network, as `--network tests.own_network:make` finds it."""

import torch
from torch import nn


def make(input_shape, classes, hidden=16):
    channels, height, width = input_shape
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(channels * height * width, hidden),
        nn.Tanh(),
        nn.Linear(hidden, classes),
    )


def too_few_classes(input_shape, classes):
    return make(input_shape, classes - 1)


class Noisy(nn.Sequential):
    def forward(self, input):
        return super().forward(input + torch.rand_like(input))


def noisy(input_shape, classes):
    return Noisy(*make(input_shape, classes))
