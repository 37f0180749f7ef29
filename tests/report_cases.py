"""Small records with known numbers, for the tests of the report."""

import json
from pathlib import Path
from typing import Any

from pipelines.core import record
from pipelines.sequential import journal

ENVIRONMENT = {
    "python": "3.11.9",
    "platform": "Linux",
    "cpus": 2,
    "versions": {"torch": "2.13.0"},
    "commit": "abc",
}


def line(number: int, accuracy: float, last: bool, **changes: Any) -> dict[str, Any]:
    return {
        "round": number,
        "labelled": 10 + 5 * number,
        "test_accuracy": accuracy,
        "train_accuracy": 1.0,
        "fit": {"steps": 3, "epochs": 3, "fitted": True, "stopped": "fitted", "residual_rms": 0.1},
        "missing_classes": [],
        "candidates": 50,
        "indices": [] if last else [1, 2, 3, 4, 5],
        "scores": [],
        "labels": [],
        "diagnostics": {},
        "weights": "0123456789abcdef",
        "seconds": {"fit": 9.0, "evaluate": 4.0, "predict": 1.0, "select": 0.5},
        "peak_memory_mib": {"fit": 1024.0, "predict": 2048.0},
    } | changes


def answer(number: int, **changes: Any) -> dict[str, Any]:
    """A line of answers.jsonl, after the first training."""
    return {
        "number": number,
        "round": 0,
        "image": number,
        "label": 3,
        "name": "3",
        "score": 0.5,
        "predicted": 3,
        "who": "dataset",
        "seconds": 0.1,
        "labelled": 11 + number,
        "accuracy": 0.5,
        "drift": 0.1,
        "foreseen": 1,
        "rounding": 0.0,
        "refreshed": 0,
    } | changes


def store_answers(folder: Path, answers: list[dict[str, Any]]) -> None:
    """Write the answers of a sequential run, and their seal into its last round."""
    (folder / journal.ANSWERS).write_bytes(record.json_lines(answers))
    rounds = record.read_lines(folder / record.ROUNDS)
    for last in rounds[-1:]:
        last["answers"] = journal.seal_of(answers)
    (folder / record.ROUNDS).write_bytes(record.json_lines(rounds))


def run(
    strategy: str,
    seed: int,
    accuracies: list[float],
    *,
    cycles: int | None = None,
    path: str = "",
    lines: dict[int, dict[str, Any]] | None = None,
    environment: dict[str, Any] = ENVIRONMENT,
    **settings: Any,
) -> record.Run:
    """A run with these test accuracies; `lines` changes entries of rounds, `settings` the rest."""
    cycles = len(accuracies) - 1 if cycles is None else cycles
    config = {
        "format": record.FORMAT,
        "dataset": "digits",
        "network": "cnn",
        "strategy": strategy,
        "seed": seed,
        "initial": 10,
        "query": 5,
        "subset": 50,
        "cycles": cycles,
        "train": {"loss": "l2", "epochs": 3},
        "data": {},
    }
    rounds = tuple(
        line(i, accuracy, i == cycles) | (lines or {}).get(i, {})
        for i, accuracy in enumerate(accuracies)
    )
    where = Path(path or f"{strategy}-{seed}")
    return record.Run(where, config | settings, (environment,), rounds)


def store(made: record.Run, root: Path) -> Path:
    """Write a run as a run directory."""
    folder = root / made.path
    folder.mkdir(parents=True)
    (folder / record.CONFIG).write_text(json.dumps(made.config))
    (folder / record.ENVIRONMENT).write_text(json.dumps(made.environment))
    (folder / record.ROUNDS).write_text("".join(json.dumps(entry) + "\n" for entry in made.rounds))
    return folder
