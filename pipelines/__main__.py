"""List of commands: python -m pipelines."""

import ast
from pathlib import Path

from rich.console import Console
from rich.table import Table

from trainer.data import DATASETS

FOLDER = Path(__file__).parent


def main() -> None:
    """Print every command with the first line of its docstring, importing none of them."""
    console = Console()
    packages = sorted(path.parent.name for path in FOLDER.glob("*/__main__.py"))
    for title, names in (("Active learning on", [*DATASETS]), ("Also", ["demo", *packages])):
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
