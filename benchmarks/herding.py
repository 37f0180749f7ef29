"""Cost of a batch of UHerding, one pick after another.

From features of a large pool to the time of a batch whose gains follow from those before each pick,
and of all gains anew, which is timed once and counted for every pick. Run it as

    python -m benchmarks.herding [--json FILE] [--pool 50000] [--batch 100]
"""

from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import tyro

from benchmarks.lookahead import problem
from benchmarks.measuring import Times, load, machine, markdown, turns, write
from kernel.covariance import Features
from kernel.herding import HerdingState
from kernel.lookahead import acquisition_state
from kernel.options import Options
from kernel.posterior import posterior

HEAD = ("picks", "seconds, gains followed", "seconds, all gains anew for each", "ratio")


@dataclass(frozen=True)
class Settings:
    """Sizes, turns and output."""

    pool: int = 50_000
    labelled: int = 1000
    classes: int = 10
    dimensions: int = 4096
    """k of the features, in float32."""
    latent: int = 20
    """Directions in which images differ, beside noise."""
    sample: int = 2000
    batch: int = 100
    compared: int = 3
    """Picks that are made in both ways, and must be the same."""
    repeats: int = 3
    """Turns."""
    seed: int = 0
    json: Path | None = None


def start(settings: Settings) -> HerdingState:
    """Before the first pick."""
    rng = np.random.default_rng(settings.seed)
    examples = settings.labelled + settings.pool
    features = rng.standard_normal((examples, settings.latent), np.float32)
    features = features @ rng.standard_normal((settings.latent, settings.dimensions), np.float32)
    features += rng.standard_normal(features.shape, np.float32)
    given = problem(settings.labelled, settings.pool, settings.classes, rng)
    sample = rng.choice(settings.pool, settings.sample, replace=False)
    kernel = Features(features, "float32")
    made = posterior(kernel, *given, sample=sample, keep=False)
    seen = acquisition_state("uherding", kernel, made, Options(temperature=0.4), targets=given[0])
    assert isinstance(seen, HerdingState)
    return seen


def picked(seen: HerdingState, count: int, followed: bool) -> list[int]:
    """A batch, in one of the two ways."""
    seen, places = replace(seen), []  # remembers nothing
    for _ in range(count):
        scores = (seen if followed else replace(seen, known=None)).scores()
        places.append(int(scores.argmax()))
        if len(places) < count:
            seen = seen.assume(np.array(places[-1:]))
    return places


def main(settings: Settings) -> None:
    """Print the table and write the figures."""
    seen, few = start(settings), min(settings.compared, settings.batch)
    if picked(seen, few, True) != picked(seen, few, False):
        raise AssertionError("the two ways make different picks")
    taken = turns(
        {
            "followed": lambda: picked(seen, settings.batch, True),
            "one look": lambda: replace(seen).scores(),
        },
        settings.repeats,
    )
    followed = taken["followed"]
    anew = Times(tuple(settings.batch * own for own in taken["one look"].seconds))
    ratio = anew.over(followed)
    row = (settings.batch, f"{followed.median:.3g}", f"{anew.median:.3g}", ratio)
    print(markdown(HEAD, [row]))
    print(
        f"U = {settings.pool:,}, k = {settings.dimensions:,}, M = {settings.sample:,}, "
        f"L = {settings.labelled:,}; n = {settings.repeats} turns, seed {settings.seed}; one look "
        f"timed, counted {settings.batch} times. {machine()}; {load()}."
    )
    figures = {"followed": followed._asdict(), "anew": anew._asdict(), "ratio": ratio._asdict()}
    write(settings.json, asdict(settings), figures)


if __name__ == "__main__":
    main(tyro.cli(Settings))
