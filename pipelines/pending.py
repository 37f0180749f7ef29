"""What the round in progress has finished: its training, and the chunks of its kernel.

From a run directory to the state of an unfinished round, so that a run interrupted in the middle of
a long query takes up the query and does not train again.
"""

import json
import shutil
from pathlib import Path
from typing import Any

from bridge.atomic import replace
from pipelines.errors import PipelineError
from pipelines.record import Run

FOLDER = ".pending"


class Pending:
    """The unfinished round of a run; it lies in a folder that goes when the round is recorded."""

    def __init__(self, run: Run):
        """Take up the folder if it is of this round and configuration, else empty it."""
        self._folder = run.path / FOLDER
        self._state = self._folder / "round.json"
        self._of = {"round": len(run.rounds), "config": run.config}
        self._weights = run.weights(len(run.rounds))
        if not self._state.is_file() or self._read()["of"] != self._of:
            clear(run.path)

    @property
    def kernel(self) -> Path:
        """Where the kernel keeps its finished chunks."""
        return self._folder / "kernel"

    def trained(self) -> dict[str, Any] | None:
        """What was recorded of the round's training, if its weights are on disk."""
        if not self._state.is_file() or not self._weights.is_file():
            return None
        return self._read()["trained"]

    def keep(self, trained: dict[str, Any]) -> None:
        """The round's training is over, and its weights are on disk."""
        self._folder.mkdir(exist_ok=True)
        replace(self._state, json.dumps({"of": self._of, "trained": trained}).encode())

    def _read(self) -> dict[str, Any]:
        try:
            return json.loads(self._state.read_text("utf-8"))
        except ValueError as error:
            raise PipelineError(
                f"{self._state} is not valid JSON ({error}). The run writes it whole or not at "
                f"all, so something else changed it: delete the folder {self._folder} and give "
                "the same command again."
            ) from error


def clear(path: Path) -> None:
    """Forget the round in progress of the run in this directory."""
    shutil.rmtree(path / FOLDER, ignore_errors=True)
