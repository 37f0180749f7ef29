"""Can my network be mirrored? `python -m bridge.check my_nets:make --shape 3,32,32`.

Certificate, parameters, tap sites and the cost of a kernel: everything that a run would find out
later, before anything is trained.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console

from bridge.errors import BridgeError
from kernel.errors import KernelError
from trainer.errors import TrainerError

FAILED = 2


@dataclass(frozen=True)
class Check:
    """Arguments of `python -m bridge.check`.

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


def main() -> None:
    """Parse the command line; torch and JAX are imported after that."""
    settings = tyro.cli(Check, prog="python -m bridge.check", description=__doc__)
    from bridge.checking import check

    try:
        status = check(settings, Console())
    except (TrainerError, BridgeError, KernelError) as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201 - a command line
        sys.exit(FAILED)
    sys.exit(status)


if __name__ == "__main__":
    main()
