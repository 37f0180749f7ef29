"""The settings of a sequential run; the command line is made from them.

What a sequential run leaves on disk: the record of a run, and a line for every answer.

An answer is on the disk before it is absorbed and before the next question; what follows from it
(accuracy, drift) is added to its line with the next write. Every file is replaced whole.
"""

import dataclasses
import importlib
import json
from pathlib import Path
from typing import Any

import tyro

from bridge.weights import replace
from kernel.options import Options
from pipelines import record
from pipelines.config import RunConfig
from pipelines.errors import PipelineError
from pipelines.record import Run
from pipelines.sequential.learner import NAMES, options_of
from pipelines.strategies.options import ALBLConfig, BaselineConfig, LL4ALConfig
from trainer.data import DATASETS
from trainer.errors import lookup

# What may be more the next time that the same run is taken up.
GROWING = frozenset({"budget", "final_training", "cycles"})


@dataclasses.dataclass(frozen=True)
class SequentialConfig(RunConfig):
    """Ask for one label at a time, and absorb each answer without training.

    Attributes:
        dataset: the data set: digits, mnist, fashion_mnist, cifar10, cifar100, svhn, caltech101, or
            images, your own in --data-dir, labelled or not.
        strategy: how the next image is chosen: mlmoc or another look-ahead criterion; random; or
            entropy, margin, least_confident of the linearised network.
        budget: questions that are answered, beyond the labels at the start. A run that is complete
            goes on with a larger one.
        initial: labels at the start, drawn uniformly. Of your own images those in train/CLASS/ are
            taken, and only what is lacking is asked for.
        subset: candidates drawn afresh from the pool at each training; None takes the whole pool.
        test_subset: test images, drawn once, on which the linearised network is evaluated after
            each answer; None takes all.
        retrain_every: train again after so many answers; None never does.
        retrain_when_stale: train again when the answers have moved the linearised network's
            parameters by more than this part of their norm; None never does.
        final_training: train once more when the budget is spent.
        oracle: who answers: dataset, person (at this terminal), or your own module:function, which
            is given data-set indices and returns their classes.
        class_names: of your own images, the classes that have no folder yet.
    """

    dataset: str = "digits"
    budget: int = 100
    subset: int | None = None
    test_subset: int | None = 1000
    retrain_every: int | None = None
    retrain_when_stale: float | None = None
    final_training: bool = False
    oracle: str = "dataset"
    class_names: tuple[str, ...] = ()
    query: tyro.conf.Suppress[int] = 1
    cycles: tyro.conf.Suppress[int] = 0
    dry_run: tyro.conf.Suppress[bool] = False
    baseline: tyro.conf.Suppress[BaselineConfig] = dataclasses.field(default_factory=BaselineConfig)
    ll4al: tyro.conf.Suppress[LL4ALConfig] = dataclasses.field(default_factory=LL4ALConfig)
    albl: tyro.conf.Suppress[ALBLConfig] = dataclasses.field(default_factory=ALBLConfig)

    def __post_init__(self):
        """Refuse what can be seen to be wrong before anything is read or computed.

        Raises:
            UnknownNameError: a data set or strategy that is not there.
            PipelineError: a number out of range, or settings that exclude each other.
        """
        lookup(DATASETS, self.dataset, "data set")
        lookup(dict.fromkeys(NAMES), self.strategy, "sequential strategy")
        least = {"budget": 0, "test_subset": 1, "retrain_every": 1}
        for name, bound in least.items():
            value = getattr(self, name)
            if value is not None and value < bound:
                raise PipelineError(f"{name} must be {bound} or more, not {value}.")
        if self.retrain_when_stale is not None and not self.retrain_when_stale > 0:
            raise PipelineError(
                f"retrain_when_stale must be above 0, not {self.retrain_when_stale:g}."
            )
        if self.oracle not in ("dataset", "person") and ":" not in self.oracle:
            raise PipelineError(
                f"oracle is {self.oracle!r}; it must be dataset, person, or your own function as "
                "module:function."
            )
        if self.class_names and self.dataset != "images":
            raise PipelineError(
                "class_names are for your own images (--dataset images); other data sets have "
                "their own."
            )
        if self.subset is not None and self.subset < self.budget and not self.retrains:
            raise PipelineError(
                f"budget is {self.budget} and subset is {self.subset}, and other candidates are "
                "drawn only when the network is trained again: raise subset, lower budget, or "
                "give retrain_every."
            )
        if self.lookahead.batch is not None or self.lookahead.interval != 1:
            raise PipelineError(
                "lookahead.batch and lookahead.interval are for batches, and questions are asked "
                "one at a time here: leave them out."
            )
        _ = self.plain, self.options

    @property
    def retrains(self) -> bool:
        """Whether it trains again before the budget is spent."""
        return self.retrain_every is not None or self.retrain_when_stale is not None

    @property
    def plain(self) -> RunConfig:
        """What it has in common with a run of rounds of one question."""
        own = {field.name: getattr(self, field.name) for field in dataclasses.fields(RunConfig)}
        return RunConfig(**own | {"strategy": "mlmoc", "query": 1, "cycles": self.budget})

    @property
    def options(self) -> Options:
        """Of look-ahead criteria."""
        return options_of(self.strategy, self.lookahead, self.kernel, self.seed)

    @property
    def run_folder(self) -> Path:
        """Where the record is written."""
        default = f"{self.dataset}-sequential-{self.strategy}-seed{self.seed}"
        return self.run or Path("runs") / default

    def record(self) -> dict[str, Any]:
        """What is computed, JSON-able; `cycles` as far as it is known beforehand."""
        trainings = 0
        if self.retrain_every is not None:
            trainings = max(self.budget - 1, 0) // self.retrain_every
        if self.final_training and self.budget:
            trainings += 1
        return super().record() | {"mode": "sequential", "cycles": trainings}


def defaults(dataset: str) -> SequentialConfig:
    """The settings of a data set's script, for asking one question at a time.

    Raises:
        UnknownNameError: no such data set.
    """
    lookup(DATASETS, dataset, "data set")
    script: RunConfig = importlib.import_module(f"pipelines.{dataset}").DEFAULTS
    return SequentialConfig(
        dataset=dataset,
        initial=script.initial,
        subset=script.subset,
        network=script.network,
        network_args=script.network_args,
        image_size=script.image_size,
        train=script.train,
        lookahead=script.lookahead,
        kernel=dataclasses.replace(script.kernel, reference="linearised"),
    )


ANSWERS = "answers.jsonl"


class Journal:
    """A run directory of the sequential mode.

    Attributes:
        run: configuration, environment, and one line for each training.
        answers: one object for each answer or image set aside, in order.
    """

    def __init__(self, run: Run, answers: list[dict[str, Any]]):
        """Of what was read; see `open_journal` and `read`."""
        self.run = run
        self.answers = answers

    def add(self, line: dict[str, Any]) -> None:
        """Write an answer to the disk.

        Raises:
            OSError: it cannot be written; it is not in the journal then.
        """
        self._write([*self.answers, line])
        self.answers.append(line)

    def follow(self, entries: dict[str, Any]) -> None:
        """Add what follows from the last answer; written with the next one, or by `flush`."""
        self.answers[-1] |= entries

    @property
    def unfollowed(self) -> bool:
        """Whether the process was ended before it knew what follows from the last answer."""
        last = self.answers[-1] if self.answers else {"round": None}
        return last["round"] is not None and "drift" not in last

    def take_back(self) -> None:
        """Remove the last answer from the disk."""
        self._write(self.answers[:-1])
        self.answers.pop()

    def flush(self) -> None:
        """Write what follows from the last answer."""
        self._write(self.answers)

    def train(self, line: dict[str, Any]) -> None:
        """Add a training, whose weights are on the disk."""
        self.flush()
        self.run = record.append(self.run, line)

    @property
    def given(self) -> list[dict[str, Any]]:
        """The answers that count against the budget: labels given since the first training."""
        return [line for line in self.answers if line["label"] is not None and _asked(line)]

    def of_round(self, number: int | None) -> list[dict[str, Any]]:
        """Answers and images set aside after a training; None: before the first."""
        return [line for line in self.answers if line["round"] == number]

    def _write(self, lines: list[dict[str, Any]]) -> None:
        text = "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines)
        replace(self.run.path / ANSWERS, text.encode())


def _asked(line: dict[str, Any]) -> bool:
    return line["round"] is not None


def open_journal(
    path: Path, config: dict[str, Any], machine: dict[str, Any] | None = None
) -> Journal:
    """Start a run in a directory, or resume the one that is there.

    Args:
        path: the directory, made if it is not there.
        config: what identifies the run; a larger budget than before goes on.
        machine: settings of this start that do not; recorded and never compared.

    Raises:
        PipelineError: the directory holds a run made with other settings, or other files.
    """
    answers = read(path).answers if (path / record.CONFIG).is_file() else []
    run = record.open_run(path, config, machine, growing=GROWING, begun=bool(answers))
    return Journal(run, answers)


def read(path: Path) -> Journal:
    """Read a run directory, complete or not.

    Raises:
        PipelineError: it is not one, or one of its files cannot be understood.
    """
    run = record.read(path)
    file = path / ANSWERS
    if not file.is_file():
        return Journal(run, [])
    try:
        answers = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
        numbers = [line["number"] for line in answers]
    except (ValueError, KeyError, TypeError) as error:
        raise PipelineError(
            f"{file} cannot be understood ({error!r}). The run writes it whole or not at all, so "
            "something else changed it: restore it, or start in a new directory."
        ) from error
    if numbers != list(range(len(answers))):
        raise PipelineError(f"{file} does not hold answers 0, 1, 2, … in order; it was edited.")
    return Journal(run, answers)
