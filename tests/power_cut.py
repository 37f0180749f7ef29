"""Power cuts simulated at every write of small runs, and a resume from each.

`python -m tests.power_cut [run] [sequential] [--most N]` from the root of a checkout. A disk keeps
what was flushed: contents by fsync of the file, names by fsync of their folder. At every fsync and
rename three disks are made of the folder as it is then: contents that were not flushed are zeros,
or cut to nothing, or neither they nor names that were not flushed are there. A resume from each has
to choose what an undisturbed run chooses, or to refuse in words that name a damaged file.
"""

import argparse
import dataclasses
import os
import shutil
import stat
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from kernel import ntk
from pipelines import digits, run
from pipelines.sequential.run import run as carry_out
from pipelines.strategies.options import KernelConfig
from tests import sequential_cases
from trainer.fit import TrainConfig

Files = dict[str, bytes]
"""By path relative to the run's folder; an empty folder is a name that ends in /."""


class Cut(NamedTuple):
    """A disk after a power cut: where it happened, how, and what is left."""

    where: str
    how: str
    files: Files


class Disk:
    """Follows what is flushed of a folder."""

    def __init__(self, root: Path):
        """Nothing is there yet."""
        self.root, self.cuts = root, []
        self._contents: dict[int, bytes] = {}  # by inode
        self._names: dict[Path, Files] = {}  # of each folder

    def flushed(self, descriptor: int) -> None:
        """Note a file's contents, or a folder's names."""
        status, path = os.fstat(descriptor), Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        if path != self.root and self.root not in path.parents:
            return
        if stat.S_ISDIR(status.st_mode):
            self._names[path] = {
                own.name + "/" * own.is_dir(): self._contents.get(own.stat().st_ino, b"")
                for own in path.iterdir()
            }
        else:
            self._contents[status.st_ino] = path.read_bytes()

    def cut(self, where: str) -> None:
        """The power goes now."""
        if self.root.is_dir():
            self.cuts.append(Cut(where, "zeroed", self._left(bytes)))
            self.cuts.append(Cut(where, "cut short", self._left(lambda size: b"")))
            self.cuts.append(Cut(where, "lost", dict(self._durable(self.root))))

    def _left(self, unflushed: Callable[[int], bytes]) -> Files:
        """All names, and contents as far as they were flushed."""
        found: Files = {}
        for path in sorted(self.root.rglob("*")):
            name = str(path.relative_to(self.root))
            if path.is_dir():
                found[name + "/"] = b""
                continue
            content = path.read_bytes()
            flushed = self._contents.get(path.stat().st_ino) == content
            found[name] = content if flushed else unflushed(len(content))
        return found

    def _durable(self, folder: Path) -> Iterator[tuple[str, bytes]]:
        """Names and contents that were flushed."""
        for name, content in self._names.get(folder, {}).items():
            yield f"{(folder / name).relative_to(self.root)}{'/' * name.endswith('/')}", content
            if name.endswith("/"):
                yield from self._durable(folder / name)


@contextmanager
def watched(root: Path) -> Iterator[Disk]:
    """Cut the power before and after every fsync and rename in a folder."""
    disk, fsync, replace = Disk(root), os.fsync, os.replace

    def flushing(descriptor: int) -> None:
        name = os.readlink(f"/proc/self/fd/{descriptor}")
        disk.cut(f"before fsync of {name}")
        fsync(descriptor)
        disk.flushed(descriptor)
        disk.cut(f"after fsync of {name}")

    def renaming(source: Path, target: Path) -> None:
        replace(source, target)
        disk.cut(f"after rename to {target}")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", flushing)
        patch.setattr(os, "replace", renaming)
        yield disk
    disk.cut("at the end")


def different(cuts: list[Cut]) -> list[Cut]:
    """One of each disk."""
    return list({tuple(sorted(cut.files.items())): cut for cut in cuts}.values())


def spread(cuts: list[Cut], most: int) -> list[Cut]:
    """At most so many, over all stages."""
    step = max(1, -(-len(cuts) // most))
    return cuts[::step]


def restored(cut: Cut, folder: Path) -> None:
    """Make the folder as the cut left it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, content in cut.files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if name.endswith("/"):
            (folder / name).mkdir(exist_ok=True)
        else:
            (folder / name).write_bytes(content)


def rounds(folder: Path) -> list[object]:
    """A run with a kept kernel: what it chose and how good it was."""
    config = dataclasses.replace(
        digits.DEFAULTS,
        initial=12,
        query=3,
        subset=70,
        cycles=2,
        network="tests.own_network:make",
        network_args=("hidden=8",),
        train=TrainConfig(epochs=2, min_steps=4, extensions=0),
        kernel=KernelConfig(chunk=8, sketch=64),
        run=folder,
    )
    names = ("indices", "scores", "labels", "test_accuracy")
    return [[line[name] for name in names] for line in run.run(config).rounds]


def answers(folder: Path) -> list[object]:
    """A sequential run with a kept kernel: its questions, answers and accuracies."""
    journal = carry_out(sequential_cases.config(folder))
    return [
        [sequential_cases.comparable(journal.answers)],
        [sequential_cases.comparable(journal.run.rounds)],
    ]


STAGES: dict[str, Callable[[Path], list[object]]] = {"run": rounds, "sequential": answers}


def outcomes(name: str, most: int, scratch: Path) -> Iterator[tuple[Cut, str]]:
    """The outcome of a resume from each disk: `same`, `refused: …`, or `DIFFERENT`."""
    work = STAGES[name]
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        patch.setattr(ntk, "LONG", 0.0)  # every kernel is kept
        warnings.filterwarnings("ignore", ".* is damaged", UserWarning)
        with watched(scratch / "watched") as disk:
            expected = work(scratch / "watched")
        for cut in spread(different(disk.cuts), most):
            restored(cut, scratch / "resumed")
            try:
                found = "same" if work(scratch / "resumed") == expected else "DIFFERENT"
            except ValueError as error:  # all of the four packages are
                damaged = any(Path(file).name in str(error) for file in cut.files)
                found = f"refused: {error}" if damaged else f"DIFFERENT: {error}"
            yield cut, found


def main() -> int:
    """Print every resume that did not come to the same end; 1 if one came to another."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stages", nargs="*", default=list(STAGES), choices=list(STAGES))
    parser.add_argument("--most", type=int, default=10**6, help="disks of each stage")
    arguments, wrong = parser.parse_args(), 0
    for name in arguments.stages:
        counted: Counter[str] = Counter()
        with tempfile.TemporaryDirectory() as scratch:
            for cut, found in outcomes(name, arguments.most, Path(scratch)):
                counted[found.partition(":")[0]] += 1
                wrong += found.startswith("DIFFERENT")
                if found != "same":
                    print(f"{name}, {cut.how}, {cut.where}: {found}", flush=True)  # noqa: T201
        print(f"{name}: {dict(counted)}", flush=True)  # noqa: T201
    return min(wrong, 1)


if __name__ == "__main__":
    sys.exit(main())
