"""Kernels of infinite width against finite networks, closed forms and themselves."""

import subprocess
import sys

import jax
import numpy as np
import pytest
import torch
from torch import nn

from kernel import infinite
from kernel.covariance import Cross
from kernel.errors import KernelError
from kernel.infinite import (
    BIAS_STD,
    CONVOLUTION_STD,
    HEAD_STD,
    Architecture,
    infinite_kernel,
    infinite_rows,
    nt,
    tiling,
)
from trainer.networks import build
from trainer.networks.architecture import depths_of
from trainer.predict import Piecewise


def at_width(network: nn.Module, factor: float) -> nn.Module:
    """Without BatchNorm, means for maxima, every width but those of the ends times a factor."""
    for name, child in list(network.named_children()):
        if isinstance(child, nn.Conv2d):
            own = child.in_channels if child.in_channels == 1 else int(child.in_channels * factor)
            wide = int(child.out_channels * factor)
            shape = (child.kernel_size, child.stride, child.padding)
            new = nn.Conv2d(own, wide, *shape, bias=child.bias is not None)  # pyright: ignore[reportArgumentType]
        elif isinstance(child, nn.Linear):
            new = nn.Linear(int(child.in_features * factor), 2)
        elif isinstance(child, nn.BatchNorm2d):
            new = nn.Identity()
        elif isinstance(child, nn.MaxPool2d):
            new = nn.AvgPool2d(2)
        else:
            new = at_width(child, factor)
        setattr(network, name, new)
    return network


def finite_ntk(network: nn.Module, images: torch.Tensor) -> np.ndarray:
    """In the parametrisation of `kernel.infinite`, freshly drawn; the mean over logits."""
    scales: dict[torch.Tensor, float] = {}
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            std = CONVOLUTION_STD if isinstance(module, nn.Conv2d) else HEAD_STD
            scales[module.weight] = std / module.weight[0].numel() ** 0.5
            nn.init.normal_(module.weight, 0, scales[module.weight])
            if module.bias is not None:
                scales[module.bias] = BIAS_STD
                nn.init.normal_(module.bias, 0, BIAS_STD)
    answers = network(images)
    total = 0
    for logit in range(answers.shape[1]):
        rows = []
        for answer in answers[:, logit]:
            gradients = torch.autograd.grad(answer, list(scales), retain_graph=True)
            scaled = [s * g for s, g in zip(scales.values(), gradients, strict=True)]
            rows.append(torch.cat([g.flatten() for g in scaled]))
        jacobian = torch.stack(rows).double()
        total = total + jacobian @ jacobian.T / answers.shape[1]
    return np.asarray(total)


def smooth_images(count: int, height: int, width: int) -> torch.Tensor:
    coarse = torch.randn(count, 1, (height + 1) // 2, (width + 1) // 2)
    grown = nn.functional.interpolate(coarse, scale_factor=2)[:, :, :height, :width]
    return grown + 0.5 * torch.randn(count, 1, height, width)


CASES = {  # arguments, images, factor of widths, draws
    "cnn": ({}, (5, 4), 3, 24),
    "wide_resnet": ({"stages": 1, "blocks": 2}, (4, 4), 3, 10),
    "vgg11_bn": ({}, (16, 16), 0.5, 8),
}


@pytest.mark.parametrize("name", CASES)
def test_wide_networks_have_nearly_this_kernel(name):
    """The torch modules themselves: strides, padding, branches and biases all enter.

    The mean over draws is held to four of the largest of its standard errors, and 3% for its bias
    at this width.
    """
    arguments, side, factor, draws = CASES[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        images = smooth_images(3, *side)
        plain = build(name, (1, *side), 10, np.random.default_rng(0), arguments)
        depths = depths_of(plain)
        assert depths is not None
        assert depths.name == name
        network = at_width(plain, factor)
        finite = [finite_ntk(network, images) for _ in range(draws)]
    analytic = np.asarray(infinite_kernel(Architecture(*depths), images.numpy(), 1).values)
    np.testing.assert_array_equal(analytic, analytic.T)
    assert np.linalg.eigvalsh(analytic)[0] > 0
    ratios = np.array(finite) / analytic
    error = ratios.std(axis=0, ddof=1) / draws**0.5
    assert error.max() < 0.15, "too few draws to tell anything"
    np.testing.assert_array_less(abs(ratios.mean(axis=0) - 1), 4 * error.max() + 0.03)


class Literal:
    """The arc-cosine recursion (Cho & Saul 2009; Arora et al. 2019) on whole arrays, by NumPy.

    Covariances and tangent kernel of (image, row, column) with (image, row, column).
    """

    def __init__(self, nngp: np.ndarray, ntk: np.ndarray) -> None:
        self.nngp, self.ntk = nngp, ntk

    @classmethod
    def of(cls, images: np.ndarray) -> "Literal":
        nngp = np.einsum("acij,bckl->aijbkl", images, images) / images.shape[1]
        return cls(nngp, np.zeros_like(nngp))

    def convolved(self, stride: int = 1, window: int = 3, bias: float = BIAS_STD) -> "Literal":
        edge = (window - 1) // 2
        height, width = self.nngp.shape[1:3]

        def summed(kernel: np.ndarray) -> np.ndarray:
            wide = np.pad(kernel, [(0, 0), (edge, edge), (edge, edge)] * 2)
            out = np.zeros_like(kernel)
            for i in range(window):
                for j in range(window):
                    rows, columns = slice(i, i + height), slice(j, j + width)
                    out += wide[:, rows, columns, :, rows, columns] / window**2
            return CONVOLUTION_STD**2 * out[:, ::stride, ::stride, :, ::stride, ::stride]

        nngp = summed(self.nngp) + bias**2
        return Literal(nngp, nngp + summed(self.ntk))

    def relu(self) -> "Literal":
        diagonal = np.einsum("aijaij->aij", self.nngp)
        norms = np.sqrt(np.multiply.outer(diagonal, diagonal))
        angle = np.arccos(np.clip(self.nngp / norms, -1, 1))
        nngp = norms * (np.sin(angle) + (np.pi - angle) * np.cos(angle)) / (2 * np.pi)
        return Literal(nngp, self.ntk * (np.pi - angle) / (2 * np.pi))

    def plus(self, other: "Literal") -> "Literal":
        return Literal(self.nngp + other.nngp, self.ntk + other.ntk)

    def read(self) -> np.ndarray:
        """The last layer's, after the mean over pixels."""
        mean = lambda kernel: kernel.mean(axis=(1, 2, 4, 5))
        return HEAD_STD**2 * (mean(self.nngp) + mean(self.ntk)) + BIAS_STD**2


def literal_cnn(x: Literal) -> Literal:
    return x.convolved().relu().convolved().relu().convolved().relu()


def literal_wide_resnet(x: Literal) -> Literal:
    """One stage of two blocks."""
    active = x.convolved().relu()
    x = active.convolved(2).relu().convolved().plus(active.convolved(2, 1))
    x = x.relu().convolved().relu().convolved().plus(x)
    return x.relu()


def literal_resnet18(x: Literal) -> Literal:
    x = x.convolved(bias=0)
    for stride in (1, 1, 2, 1, 2, 1, 2, 1):
        active = x.relu()
        inner = active.convolved(stride, bias=0).relu().convolved(bias=0)
        x = inner.plus(x if stride == 1 else active.convolved(stride, 1, bias=0))
    return x.relu()


@pytest.mark.parametrize(
    ("architecture", "literal", "side"),
    [
        (Architecture("cnn"), literal_cnn, (3, 4)),
        (Architecture("wide_resnet", (("stages", 1), ("blocks", 2))), literal_wide_resnet, (4, 3)),
        (Architecture("resnet18"), literal_resnet18, (4, 3)),
    ],
)
def test_against_the_recursion_itself(architecture, literal, side, rng):
    images = rng.normal(size=(3, 2, *side))
    found = np.asarray(infinite_kernel(architecture, images, 1).values)
    np.testing.assert_allclose(found, literal(Literal.of(images)).read(), rtol=1e-6)


def test_symmetric_and_positive(rng):
    images = rng.normal(size=(9, 1, 6, 6))
    values = np.asarray(infinite_kernel(Architecture("wide_resnet"), images, 2).values)
    np.testing.assert_array_equal(values, values.T)
    assert np.linalg.eigvalsh(values)[0] > -1e-12 * np.trace(values)


def test_tiles_do_not_matter(rng, monkeypatch):
    images = rng.normal(size=(11, 1, 4, 4))
    architecture = Architecture("cnn")
    whole = np.asarray(infinite_kernel(architecture, images, 3).values)
    told = []
    monkeypatch.setattr(infinite, "_LARGEST_TILE", 4)
    report = lambda done, total: told.append((done, total))
    tiled = infinite_kernel(architecture, images, 3, progress=report)
    np.testing.assert_allclose(np.asarray(tiled.values), whole, rtol=1e-12)
    assert told == [(done, 6) for done in range(7)]
    sample = np.array([6, 1, 3])
    cross = infinite_kernel(architecture, images, 3, sample=sample)
    assert isinstance(cross, Cross)
    anchors = np.concatenate([np.arange(3), 3 + sample])
    np.testing.assert_allclose(cross.values, whole[anchors], rtol=1e-12)
    np.testing.assert_allclose(cross.diagonal, whole.diagonal(), rtol=1e-12)
    rows = infinite_rows(architecture, images, 3)
    np.testing.assert_allclose(rows, whole[:3], rtol=1e-12)
    asked = []
    read = lambda some: (asked.append(len(some)), images[some])[1]
    piecewise = infinite_kernel(architecture, Piecewise(read, np.arange(11)), 3, sample=sample)
    np.testing.assert_array_equal(piecewise.values, cross.values)
    assert max(asked) == 4


def test_an_interrupted_kernel_goes_on(rng, tmp_path, monkeypatch):
    images = rng.normal(size=(10, 1, 4, 4))
    monkeypatch.setattr(infinite, "_LARGEST_TILE", 3)
    whole = np.asarray(infinite_kernel(Architecture("cnn"), images, 2).values)

    def stop(done, total):
        if done == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        infinite_kernel(Architecture("cnn"), images, 2, progress=stop, folder=tmp_path)
    told = []
    report = lambda done, total: told.append(done)
    again = infinite_kernel(Architecture("cnn"), images, 2, progress=report, folder=tmp_path)
    assert told[0] == 7
    np.testing.assert_array_equal(np.asarray(again.values), whole)


def test_a_halving_that_leaves_nothing_is_none(rng):
    images = rng.normal(size=(3, 1, 3, 3))
    shallow, deep = (
        np.asarray(infinite_kernel(Architecture("vgg11_bn", (("halvings", h),)), images, 1).values)
        for h in (1, 5)
    )
    np.testing.assert_array_equal(shallow, deep)


def test_what_does_not_fit_is_refused_with_what_would(rng):
    images = rng.normal(size=(2, 1, 28, 28))
    with pytest.raises(KernelError, match=r"pixels of one pair.*give more, .*baseline.image_size"):
        tiling(images, 1, None, 0.01)
    many = np.broadcast_to(images[:1, :, :4, :4], (20_000, 1, 4, 4))
    with pytest.raises(KernelError, match="most of it for the pairs of images"):
        tiling(many, 100, None, 1.0)
    assert tiling(many, 100, 1000, 1.0).anchors == 1100


def test_an_unknown_architecture_is_refused(rng):
    with pytest.raises(KernelError, match=r"'mlp' has no counterpart .* cnn, vgg11_bn, resnet18"):
        infinite_kernel(Architecture("mlp"), rng.normal(size=(2, 1, 4, 4)), 1)


@pytest.mark.parametrize(
    ("name", "side", "arguments", "expected"),
    [
        ("cnn", 8, {}, ()),
        ("resnet18", 8, {}, ()),
        ("vgg11_bn", 28, {}, (("halvings", 4),)),
        ("vgg11_bn", 32, {}, (("halvings", 5),)),
        ("wide_resnet", 8, {"stages": 2, "blocks": 3}, (("stages", 2), ("blocks", 3))),
    ],
)
def test_depths_of_every_network(name, side, arguments, expected):
    network = build(name, (1, side, side), 3, np.random.default_rng(0), arguments)
    assert depths_of(network) == (name, expected)


def test_other_networks_have_no_depths():
    from trainer.torchvision_compat import torchvision

    others = (nn.Identity(), torchvision.models.resnet18(), torchvision.models.resnet50())
    assert all(depths_of(other) is None for other in others)


def test_analytic_and_empirical_kernels_agree_in_the_wide_limit():
    init, apply, kernel = nt.stax.serial(nt.stax.Dense(4096), nt.stax.Relu(), nt.stax.Dense(1))
    images = jax.random.normal(jax.random.key(0), (4, 6))
    _, params = init(jax.random.key(1), (-1, 6))
    empirical = nt.empirical_ntk_fn(apply, implementation=1)(images, None, params)
    np.testing.assert_allclose(empirical, kernel(images, None, "ntk"), rtol=0.15, atol=0.05)


def test_tensorflow_is_not_imported():
    code = "import sys, kernel.infinite; sys.exit('tensorflow' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
