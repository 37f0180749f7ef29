"""Can my network be mirrored? `python -m bridge.check my_nets:make --shape 3,32,32`.

From the name of a network to its certificate, its parameters and tap sites, and what its kernel
would cost: everything a run would find out later, before anything is trained.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from rich.console import Console
from torch import nn

from bridge import export, portable, tables
from bridge.errors import BridgeError
from bridge.mirror import Mirror
from bridge.parity import compare
from bridge.trace import mirror
from bridge.twin import made_by
from bridge.weights import read
from kernel.engine.problem import Request
from kernel.errors import KernelError
from kernel.estimate import estimate
from trainer import networks
from trainer.errors import TrainerError
from trainer.networks.factory import load

FAILED, DISAGREES = 2, 1
_WORST = 12


@dataclass(frozen=True)
class Check:
    """What is checked.

    Attributes:
        network: wide_resnet, resnet18, vgg11_bn, cnn, or your own as module:factory.
        shape: channels,height,width of one image.
        classes: how many logits.
        network_args: arguments of the network, as name=value.
        weights: a file of this network's weights, as a run leaves it; without one, the initial
            weights are used.
        examples: how many random images are compared.
        seed: of the initial weights and of the images.
        route: torch.export, torch2jax, or auto: the second only if the first refuses the module.
        twin: your own JAX function in place of the mirror, as module:function, called with the
            network and a few images; it returns what bridge.twin.twin does.
        images: for how many images, candidates and labelled ones, the kernel's cost is estimated.
        memory_gib: what the Jacobian may take.
        layers: show every tap site, not only the worst.
        certificate: write the certificate to this JSON file.
        save: write graph and weights to this file, which needs no torch where it is read.
    """

    network: tyro.conf.Positional[str]
    shape: str
    classes: int = 10
    network_args: tuple[str, ...] = ()
    weights: Path | None = None
    examples: int = 4
    seed: int = 0
    route: str = "auto"
    twin: str | None = None
    images: int = 4000
    memory_gib: float = 4.0
    layers: bool = False
    certificate: Path | None = None
    save: Path | None = None


def check(settings: Check, console: Console) -> int:
    """Mirror, compare, print; 0 if the mirror may be used, 1 if it disagrees with the network.

    Raises:
        TrainerError: the network cannot be built.
        BridgeError: it cannot be mirrored, or a file cannot be read or written.
        KernelError: no kernel of it fits in the memory.
    """
    shape = _shape(settings.shape)
    for name, least in (("examples", 2), ("images", 1)):
        if getattr(settings, name) < least:
            raise BridgeError(f"{name} is {getattr(settings, name)}; it must be {least} or more")
    rng = np.random.default_rng(settings.seed)
    arguments = networks.parse_arguments(settings.network_args)
    network = networks.build(settings.network, shape, settings.classes, rng, arguments)
    if settings.weights is not None:
        export.restore(network, read(settings.weights))
    probe = rng.normal(size=(settings.examples, *shape)).astype(np.float32)
    with console.status("mirroring"):
        twin = _mirrored(settings, network, probe)
    with console.status("comparing with torch (compiles first)"):
        certificate = compare(network, twin, probe)
    console.print(tables.verdict(certificate))
    if certificate.layers:
        console.print(tables.layers(certificate, None if settings.layers else _WORST))
    console.print(tables.sizes(twin), highlight=False)
    for exception in certificate.exceptions:
        console.print(f"Note: {exception}.", highlight=False)
    if settings.certificate is not None:
        certificate.save(settings.certificate)
        console.print(f"Certificate written to {settings.certificate}.", highlight=False)
    if not certificate.passed:
        console.print(f"Not certified: {certificate.disagreements[0]}.", style="bold red")
        return DISAGREES
    if settings.save is not None:
        portable.save(twin, settings.save, {"certificate": json.dumps(certificate.summary())})
        console.print(f"Graph and weights written to {settings.save}.", highlight=False)
    with console.status("measuring gradients"):
        request = Request(memory_gib=settings.memory_gib)
        costs = estimate(twin.model(), probe, settings.images, request)
    console.print(tables.cost(costs, settings.memory_gib), highlight=False)
    console.print("Certified: this network can be used in every pipeline.", style="bold green")
    return 0


def _mirrored(settings: Check, network: nn.Module, probe: np.ndarray) -> Mirror:
    if settings.twin is None:
        return mirror(network, probe, route=settings.route)
    return made_by(load(settings.twin, "twin"), network, probe)


def _shape(text: str) -> tuple[int, int, int]:
    try:
        channels, height, width = (int(part) for part in text.split(","))
    except ValueError as error:
        raise BridgeError(
            f"shape is {text!r}; it must be channels,height,width, such as 3,32,32"
        ) from error
    return channels, height, width


def main() -> None:
    """The command line."""
    settings = tyro.cli(Check, prog="python -m bridge.check", description=__doc__)
    try:
        status = check(settings, Console())
    except (TrainerError, BridgeError, KernelError) as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201 - a command line
        sys.exit(FAILED)
    sys.exit(status)


if __name__ == "__main__":
    main()
