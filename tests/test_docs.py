"""The documentation: all code in it runs, all commands are understood, all links lead somewhere.

Commands go through the command line's own parser, and those that are marked `sh run` are run.
"""

import functools
import importlib.util
import re
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import tyro

from kernel.errors import KernelError
from pipelines import digits, run
from tests.docs_pages import PAGES, ROOT, blocks, commands, modules
from trainer.config import TrainConfig

# A page of which another test runs every block, in processes of their own.
OWN_MODEL = ROOT / "docs" / "own-model.md"
ASKED_FOR = {"make", "uv", "export", "for", "done", "done;", ".", "ray", "cd"}


class Understood(Exception):
    """A command line has been parsed."""


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def start(module: str, arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """As `python -m` does, in this process."""
    spec = importlib.util.find_spec(module)
    assert spec is not None, f"{module} does not exist"
    if spec.submodule_search_locations:
        spec = importlib.util.find_spec(f"{module}.__main__")
    assert spec is not None
    assert spec.origin, f"{module} cannot be run"
    monkeypatch.setattr(sys, "argv", [spec.origin, *arguments])
    code = compile(Path(spec.origin).read_text("utf-8"), spec.origin, "exec")
    exec(code, {"__name__": "__main__", "__file__": spec.origin, "__package__": spec.parent})


def ended(words: list[str], monkeypatch: pytest.MonkeyPatch) -> int | str | None:
    """The status that a command ends with."""
    try:
        start(words[2], tuple(words[3:]), monkeypatch)
    except SystemExit as error:
        return error.code
    return None


@pytest.fixture
def parser_only(monkeypatch):
    """Command lines are parsed, and nothing follows."""
    real = tyro.cli

    def understand(target, *args, **kwargs):
        if isinstance(target, type):
            real(target, *args, **kwargs)
            raise Understood

        @functools.wraps(target)
        def called(*_, **__):
            raise Understood

        return real(called, *args, **kwargs)

    monkeypatch.setattr(tyro, "cli", understand)


def command_faults(page, monkeypatch, capsys):
    """Commands that their own parser refuses."""
    for module, arguments in modules(page):
        try:
            start(module, arguments, monkeypatch)
        except Understood:
            continue
        except SystemExit:
            told = capsys.readouterr()
            yield f"{module} {' '.join(arguments)}\n{told.out}{told.err}"
        else:
            yield f"{module} reads no command line"


def block_faults(page):
    """Blocks of code that no test would look at, and commands that no parser would."""
    for block in blocks(page):
        if block.language not in ("python", "sh") and page.name != "CONTRIBUTING.md":
            yield f"a block of {block.language!r}"
        for words in commands(block) if block.language == "sh" else ():
            if words[0] not in ASKED_FOR and words[:2] != ["python", "-m"]:
                yield f"an unknown command: {' '.join(words)}"


def link_faults(page):
    """Links to files and headings that are not there."""
    for link, heading in re.findall(r"\]\(([^)#]*)(#[^)]*)?\)", page.read_text("utf-8")):
        if "://" in link:
            continue
        target = page.parent / link if link else page
        if not target.exists():
            yield f"a link to {link}"
        elif heading:
            headings = re.findall(r"^#+ (.*)$", target.read_text("utf-8"), re.MULTILINE)
            if heading[1:] not in {anchor(text) for text in headings}:
                yield f"a link to {link}{heading}"


def anchor(heading: str) -> str:
    """As git hosts make it of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def target_faults(page):
    """Targets of make that the Makefile does not have."""
    makefile = (ROOT / "Makefile").read_text("utf-8")
    for target in re.findall(r"^make (?:[A-Z_]+=\S+ )*([a-z-]+)", page.read_text("utf-8"), re.M):
        if not re.search(rf"^{target}:", makefile, re.M):
            yield f"make {target}"


def test_commands_blocks_links_and_targets_of_every_page(parser_only, monkeypatch, capsys):
    faults = []
    for page in PAGES:
        found = [*command_faults(page, monkeypatch, capsys), *block_faults(page)]
        found += [*link_faults(page), *target_faults(page)]
        faults += [f"{name(page)}: {fault}" for fault in found]
    assert not faults, "\n".join(faults)


def test_a_command_that_is_wrong_is_noticed(parser_only, monkeypatch):
    with pytest.raises(SystemExit):
        start("pipelines.digits", ("--no-such-setting", "1"), monkeypatch)
    with pytest.raises(AssertionError, match="does not exist"):
        start("pipelines.nowhere", (), monkeypatch)


def a_kernels_arguments(folder, monkeypatch):
    """What docs/devices.md has at hand: a model and images; and no other host to wait for."""
    from bridge.trace import mirror
    from tests import own_network

    images = np.random.default_rng(0).normal(size=(6, 1, 4, 4)).astype(np.float32)
    model = mirror(own_network.make((1, 4, 4), 3).eval(), images[:2]).model()

    def initialize(coordinator_address, *, num_processes, process_id):
        assert process_id < num_processes
        assert coordinator_address.rpartition(":")[2].isdigit()

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    return {"model": model, "images": images}


def a_run(folder, monkeypatch):
    """What docs/records.md reads."""
    config = digits.DEFAULTS.__class__(
        dataset="digits",
        strategy="random",
        cycles=1,
        network="tests.own_network:make",
        train=TrainConfig(epochs=1, min_steps=5, extensions=0, augmentation="none"),
    )
    run.run(config)
    return {}


BEFORE = {"devices.md": a_kernels_arguments, "records.md": a_run}
# What a machine without the devices refuses, and whether this is one.
REFUSED = {
    'precision="tf32"': jax.default_backend() != "gpu",
    "tf32_error(": jax.default_backend() != "gpu",
    "devices=2": jax.local_device_count() < 2,
}
PRINTED = {
    "README.md": r"\[[\d ]+\]\n",
    "strategies.md": r"badge .*\ncoreset .*\nmlmoc .*\n",
    "quick-start.md": r"\[[\d ]+\]\n(.*\n)*mlmoc-0 \[\(30, .*\nrandom-0 \[\(30, .*\n",
    "extending.md": r"\(1, 8, 8\) 3 .*\n(\[[\d ]+\]\n){2}(.*\n)*.*6 of 6 trials to do",
}


@pytest.mark.parametrize(
    "page",
    [
        page
        for page in PAGES
        if page != OWN_MODEL and any(one.language == "python" for one in blocks(page))
    ],
    ids=name,
)
def test_code_of_a_page_runs_from_top_to_bottom(page, tmp_path, monkeypatch, capsys):
    """In one folder and, as in a notebook, in one set of names."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    known = set(sys.modules)
    names = BEFORE.get(page.name, lambda *_: {})(tmp_path, monkeypatch)
    try:
        for number, block in enumerate(blocks(page)):
            where = f"{name(page)}, block {number}"
            if block.file:
                (tmp_path / block.file).parent.mkdir(exist_ok=True, parents=True)
                (tmp_path / block.file).write_text(block.text, "utf-8")
            elif block.language == "python":
                code = compile(block.text, where, "exec")
                if any(text in block.text and here for text, here in REFUSED.items()):
                    with pytest.raises(KernelError):
                        exec(code, names)
                else:
                    exec(code, names)
            elif block.told == "run":
                for words in commands(block):
                    assert words[:2] == ["python", "-m"], words
                    assert ended(words, monkeypatch) in (None, 0), where
        if page.name in PRINTED:
            shown = capsys.readouterr().out
            assert re.search(PRINTED[page.name], shown), shown
    finally:
        for module in set(sys.modules) - known:  # those of the page's own files
            if str(getattr(sys.modules[module], "__file__", None)).startswith(str(tmp_path)):
                del sys.modules[module]


def test_every_page_can_be_reached_from_the_index():
    index = ROOT / "docs" / "index.md"
    seen, left = set(), [index]
    while left:
        page = left.pop()
        if page in seen or page.suffix != ".md" or not page.is_file():
            continue
        seen.add(page)
        for link in re.findall(r"\]\(([^)#]+)", page.read_text("utf-8")):
            if "://" not in link:
                left.append((page.parent / link).resolve())
    assert {page for page in PAGES if page.parent != ROOT} <= seen
