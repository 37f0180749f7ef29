"""A trial that is carried out elsewhere: its directory here is held until its record comes back."""

from contextlib import ExitStack
from pathlib import Path

from experiments.sweep.parcel import Files, pack, unpack
from pipelines.record import only_writer


class Away:
    """The place of a record that is not in place.

    Attributes:
        files: the record as it is here, which the trial goes on from.
    """

    def __init__(self, folder: Path):
        """Hold a directory.

        Raises:
            HeldError: another process is working in it.
        """
        self._folder = folder
        with ExitStack() as stack:
            stack.enter_context(only_writer(folder))
            self.files = pack(folder)
            self._held = stack.pop_all()

    def put(self, files: Files) -> None:
        """The record has come back.

        Raises:
            OSError: a file cannot be written.
        """
        unpack(self._folder, files, frozenset(self.files))

    def close(self) -> None:
        """Let go of the directory."""
        self._held.close()
