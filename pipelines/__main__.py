"""Commands: `python -m pipelines` lists them, and runs the one that it is given."""

import ast
import runpy
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from pipelines.core.terminal import plainly
from trainer.data import DATASETS
from trainer.errors import lookup

FOLDER = Path(__file__).parent


def main() -> None:
    """Run the command that is named, or print the list of them, importing none."""
    packages = sorted(path.parent.name for path in FOLDER.glob("*/__main__.py"))
    groups = (("Active learning on", [*DATASETS]), ("Also", ["demo", *packages]))
    if sys.argv[1:] and sys.argv[1] not in ("-h", "--help"):
        name = sys.argv.pop(1)
        with plainly():
            lookup(dict.fromkeys(name for _, names in groups for name in names), name, "command")
        runpy.run_module(f"pipelines.{name}", run_name="__main__", alter_sys=True)
        return
    console = Console()
    for title, names in groups:
        table = Table("python -m …", "", title=title, title_justify="left", box=None)
        for name in names:
            table.add_row(f"pipelines.{name}", _first_line(name))
        console.print(table, "")
    console.print("Each has --help.")


def _first_line(name: str) -> str:
    file = FOLDER / f"{name}.py"
    if not file.exists():
        file = FOLDER / name / "__init__.py"
    docstring = ast.get_docstring(ast.parse(file.read_text("utf-8"))) or ""
    return docstring.partition("\n")[0]


if __name__ == "__main__":
    main()
