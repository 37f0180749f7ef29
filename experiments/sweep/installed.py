"""What is installed on a machine, so that machines that would compute different things are told.

From this process's packages to a few words that two machines can compare.
"""

import hashlib
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

_ROOT = Path(__file__).parents[2]
_ROOMS = ("trainer", "bridge", "kernel", "pipelines")
_LIBRARIES = ("torch", "jax", "numpy")


class Installed(NamedTuple):
    """Versions of one machine.

    Attributes:
        version: of ntk-lookahead.
        source: hexadecimal digits that follow from every line of its source.
        libraries: name and version of what decides the last digits of numbers.
    """

    version: str
    source: str
    libraries: tuple[str, ...]

    @property
    def own(self) -> str:
        """Of ntk-lookahead alone, for people."""
        return f"ntk-lookahead {self.version}, source {self.source}"


def installed() -> Installed:
    """Of this process."""
    libraries = tuple(f"{name} {metadata.version(name)}" for name in _LIBRARIES)
    return Installed(metadata.version("ntk-lookahead"), source(_ROOT), libraries)


def source(root: Path) -> str:
    """Hexadecimal digits of the packages' source below a folder."""
    digest = hashlib.sha256()
    for path in sorted(path for room in _ROOMS for path in (root / room).rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]
