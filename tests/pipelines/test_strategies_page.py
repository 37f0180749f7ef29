"""docs/strategies.md: a section for every strategy, whose command can be run as it stands."""

import re
import shlex
from pathlib import Path

import pytest
import tyro
from rich.console import Console

from pipelines import cli, digits
from pipelines.config import RunConfig
from pipelines.run import prepared
from pipelines.strategies import STRATEGIES
from trainer import data

PAGE = (Path(__file__).parents[2] / "docs" / "strategies.md").read_text(encoding="utf-8")
SECTIONS = re.findall(r"^### `(\w+)`\n(.*?)(?=^##|\Z)", PAGE, re.MULTILINE | re.DOTALL)
_DIGITS = data.load("digits", None)


def command(section: str) -> list[str]:
    """The words of a section's one command."""
    (block,) = re.findall(r"```sh\n(.*?)```", section, re.DOTALL)
    (line,) = block.splitlines()
    return shlex.split(line)


def test_every_strategy_has_its_section():
    assert sorted(name for name, _ in SECTIONS) == sorted(STRATEGIES)


@pytest.mark.parametrize(("name", "section"), SECTIONS, ids=[name for name, _ in SECTIONS])
def test_a_section_says_what_it_costs_and_its_command_can_be_run(name, section, tmp_path):
    assert re.search(r"[Tt]ime|Cost|O\(", section), "no cost is told"
    program, *words = command(section)[:3], command(section)[3:]
    assert program == ["python", "-m", "pipelines.digits"]
    (options,) = words
    config = tyro.cli(RunConfig, default=digits.DEFAULTS, args=options)
    assert config.strategy == name
    _, network = prepared(config, Console(quiet=True), lambda: _DIGITS)
    assert not network.training


@pytest.mark.parametrize("name", ["badge", "bald", "naive"])
def test_commands_of_the_page_are_run(name, tmp_path, monkeypatch):
    """As a person types them, but for the size: the command line itself is gone through."""
    section = dict(SECTIONS)[name]
    small = "--run RUN --subset 30 --cycles 1 --train.epochs 1 --train.min-steps 2".split()
    small = [str(tmp_path / "run") if word == "RUN" else word for word in small]
    small += ["--train.extensions", "0"]
    monkeypatch.setattr("sys.argv", [*command(section)[2:], *small])
    cli.main(digits.DEFAULTS)
    assert (tmp_path / "run" / "rounds.jsonl").read_text("utf-8").count("\n") == 2
