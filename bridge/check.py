"""Can my network be mirrored? `python -m bridge.check my_nets:make --shape 3,32,32`.

Prints certificate, parameters, tap sites and the cost of a kernel before anything is trained.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console

from bridge.errors import BridgeError
from kernel.errors import KernelError
from trainer.errors import TrainerError

DISAGREES, FAILED = 1, 2
_WORST = 12  # layers that are shown


@dataclass(frozen=True)
class Check:
    """Arguments of `python -m bridge.check`.

    Attributes:
        network: wide_resnet, resnet18, vgg11_bn, cnn, timm:NAME, torchvision:NAME, or your own as
            module:factory.
        shape: channels,height,width of one image.
        classes: how many logits.
        network_args: arguments of the network, as name=value.
        weights: a file of weights, as a run leaves it or as others publish it; none for random
            ones. By default those that timm and torchvision download; other networks have random
            ones.
        trainable: what is trained, and so what the kernel is of: head, all, last:N (of the blocks
            that are listed) or a regular expression of parameters' names; by default what requires
            a gradient.
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
    weights: str | None = None
    trainable: str | None = None
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
    """Run the command line."""
    settings = tyro.cli(Check, prog="python -m bridge.check", description=__doc__)
    try:
        status = check(settings, Console())
    except (TrainerError, BridgeError, KernelError) as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201 - a command line
        status = FAILED
    sys.exit(status)


def check(settings: Check, console: Console) -> int:
    """Mirror, compare, print; 0 if the mirror may be used, 1 if it disagrees with the network.

    Raises:
        TrainerError: the network cannot be built.
        BridgeError: it cannot be mirrored, or a file cannot be read or written.
        KernelError: no kernel of it fits in the memory.
    """
    # torch and JAX, which take seconds, once the arguments are known to be right
    import jax
    import numpy as np
    import torch

    from bridge import portable, report
    from bridge.parity import compare
    from bridge.prefix import split
    from bridge.trace import mirror
    from bridge.twin import build_twin
    from kernel.estimate import estimate_cost
    from kernel.model import dtype_of
    from kernel.options import Request
    from kernel.plan import plan_kernel
    from trainer import networks
    from trainer.config import parse_arguments
    from trainer.trainable import blocks, set_trainable

    shape = _shape(settings.shape)
    for name, least in (("examples", 2), ("images", 1)):
        if getattr(settings, name) < least:
            raise BridgeError(f"{name} is {getattr(settings, name)}; it must be {least} or more")
    rng = np.random.default_rng(settings.seed)
    arguments = parse_arguments(settings.network_args)
    network, notes = networks.build_from(
        settings.network, shape, settings.classes, rng, arguments, settings.weights
    )
    for note in notes:
        console.print(f"Note: {note}", highlight=False)
    probe = rng.normal(size=(settings.examples, *shape)).astype(np.float32)
    if settings.trainable is not None:
        set_trainable(network, settings.trainable, probe)
    arrays = dict(network.named_parameters())
    rows = []
    for block in blocks(network, probe):
        own = [arrays[name] for name in block.parameters]
        names = ", ".join(name or "the network itself" for name in block.modules)
        trained = sum(p.numel() for p in own if p.requires_grad)
        rows.append((names, sum(p.numel() for p in own), trained))
    console.print(report.block_table(rows))
    with console.status("mirroring"):
        if settings.twin is None:
            mirrored = mirror(network, probe, route=settings.route)
        else:
            mirrored = build_twin(networks.load(settings.twin, "twin"), network, probe)
    prefix = None
    if settings.twin is None and settings.save is None:  # a file holds the whole network
        prefix = split(network, mirrored, torch.tensor(probe))
    used = mirrored if prefix is None else prefix.mirror
    with console.status("comparing with torch (compiles first)"):
        certificate = compare(network, used, probe, prefix)
    console.print(report.verdict_table(certificate))
    if certificate.layers:
        console.print(report.layer_table(certificate, None if settings.layers else _WORST))
    console.print(report.size_words(used), highlight=False)
    given = probe
    if prefix is not None:
        given = prefix.rows(torch.tensor(probe)).numpy()
        console.print(report.prefix_words(prefix, network), highlight=False)
    for exception in certificate.exceptions:
        console.print(f"Note: {exception}.", highlight=False)
    if settings.certificate is not None:
        certificate.save(settings.certificate)
        console.print(f"Certificate written to {settings.certificate}.", highlight=False)
    if not certificate.passed:
        console.print(f"Not certified: {certificate.disagreements[0]}.", style="bold red")
        return DISAGREES
    if settings.save is not None:
        portable.save(mirrored, settings.save, {"certificate": json.dumps(certificate.summary())})
        console.print(f"Graph and weights written to {settings.save}.", highlight=False)
    with console.status("measuring gradients"):
        request = Request(memory_gib=settings.memory_gib)
        image = jax.ShapeDtypeStruct(given.shape[1:], dtype_of(request.precision))
        plan = plan_kernel(used.model(), image, settings.images, request)
        cost = estimate_cost(used.model(), given, plan)
    console.print(report.cost_words(cost, plan), highlight=False)
    console.print("Certified: this network can be used in every pipeline.", style="bold green")
    return 0


def _shape(text: str) -> tuple[int, int, int]:
    try:
        channels, height, width = (int(part) for part in text.split(","))
    except ValueError as error:
        raise BridgeError(
            f"shape is {text!r}; it must be channels,height,width, such as 3,32,32"
        ) from error
    return channels, height, width


if __name__ == "__main__":
    main()
