"""A damaged run folder is resumed to the same end, or refused in words: never to another end."""

import dataclasses
import shutil
from pathlib import Path

import pytest

from bridge.module import weights_of
from pipelines import digits, run
from pipelines.audit import report
from pipelines.audit import run as audit
from pipelines.audit.config import AuditConfig
from pipelines.core import json_io, record
from pipelines.sequential import journal
from pipelines.sequential import run as sequential
from tests.sequential_cases import QUICK, comparable
from tests.sequential_cases import config as one_by_one

NETWORK = {"network": "tests.own_network:make", "network_args": ("hidden=8",), "train": QUICK}
BATCHES = dataclasses.replace(
    digits.DEFAULTS, initial=20, query=5, subset=60, cycles=3, strategy="margin", **NETWORK
)
AUDIT = AuditConfig(
    initial=20, subset=30, candidates=8, controls=2, repeats=1, kinds=("single",), **NETWORK
)
WRONG = (ValueError, OSError)


class StoppedError(Exception):
    pass


def stop(*arguments, **options):
    raise StoppedError


def damages(folder: Path, older: Path, other: Path):
    """Every file deleted, emptied, cut, replaced by its older version and by another run's."""
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = file.relative_to(folder).as_posix()
        if file.name == record.LOCK:
            continue
        whole = file.read_bytes()
        yield name, "deleted", None
        yield name, "emptied", b""
        yield name, "cut", whole[: len(whole) // 2]
        for damage, source in (("older", older / name), ("of another run", other / name)):
            if source.is_file() and source.read_bytes() != whole:
                yield name, damage, source.read_bytes()


def outcomes(folder: Path, older: Path, other: Path, resume, expected, scratch: Path):
    """{(file, damage): "same" or the message of the refusal}; an end that differs fails."""
    found, copy = {}, scratch / "copy"
    for name, damage, content in damages(folder, older, other):
        shutil.copytree(folder, copy)
        if content is None:
            (copy / name).unlink()
        else:
            (copy / name).write_bytes(content)
        try:
            found[name, damage] = "same" if resume(copy) == expected else "another end"
        except WRONG as error:
            found[name, damage] = str(error)
        shutil.rmtree(copy)
    unnamed = {case: said for case, said in found.items() if said != "same"}
    assert not {case: said for case, said in unnamed.items() if str(copy) not in said}
    return found


@pytest.fixture(scope="module")
def mirrors():
    return {}


@pytest.fixture(autouse=True)
def _one_mirror(mirrors, monkeypatch):
    def one(network, twin, probe, real=run.certified_mirror):
        if "made" not in mirrors:
            mirrors["made"] = real(network, twin, probe)
        return mirrors["made"].with_weights(weights_of(network))

    for module in (run, audit):
        monkeypatch.setattr(module, "mirrored", lambda *given: (one(*given), None))


def test_a_run(tmp_path, monkeypatch):
    def stopped(folder: Path, after: int, **changes) -> Path:
        """Stopped in the query of a round, whose training is finished."""

        def late(*arguments, real=run.build_context, **options):
            return (
                stop() if options["resources"].history[after - 1 :] else real(*arguments, **options)
            )

        with monkeypatch.context() as patch:
            patch.setattr(run, "build_context", late)
            with pytest.raises(StoppedError):
                run.run(dataclasses.replace(BATCHES, run=folder, **changes))
        return folder

    def resume(folder: Path):
        return comparable(run.run(dataclasses.replace(BATCHES, run=folder)).rounds)

    expected = resume(tmp_path / "whole")
    now, older = stopped(tmp_path / "now", 2), stopped(tmp_path / "older", 1)
    other = stopped(tmp_path / "other", 2, seed=1)
    found = outcomes(now, older, other, resume, expected, tmp_path)
    same = {case for case, outcome in found.items() if outcome == "same"}
    again = {"deleted", "emptied", "cut", "of another run"}  # weights, by the same training
    expected_same = {
        "config.json": {"older"},  # another folder
        "environment.json": {"deleted", "older", "of another run"},
        ".pending/round.json": {"deleted", "older", "of another run"},
        "weights-001.safetensors": again,
        "weights-002.safetensors": again,
    }
    assert same == {case for case in found if case[1] in expected_same.get(case[0], ())}
    for damage, count in (("deleted", 0), ("emptied", 0), ("older", 1)):
        assert f"rounds.jsonl has {count} rounds" in found["rounds.jsonl", damage]
    assert "are of different runs" in found["rounds.jsonl", "of another run"]
    assert "seed is 1 there, 0 here" in found["config.json", "of another run"]


def test_a_run_whose_last_weights_were_changed(tmp_path, monkeypatch):
    """With no finished training after them, they are what the next training starts from."""
    folders = {}
    for seed in (0, 1):
        folders[seed] = tmp_path / str(seed)
        with monkeypatch.context() as patch:
            patch.setattr(run, "print_round", stop)
            with pytest.raises(StoppedError):
                run.run(dataclasses.replace(BATCHES, run=folders[seed], seed=seed))
    name = "weights-000.safetensors"
    shutil.copy(folders[1] / name, folders[0] / name)
    with pytest.raises(ValueError, match=r"weights-000.* has the SHA-256 .*rounds.jsonl says"):
        run.run(dataclasses.replace(BATCHES, run=folders[0]))
    (folders[0] / name).unlink()
    with pytest.raises(ValueError, match=r"weights-000\.safetensors is missing.* restore it"):
        run.run(dataclasses.replace(BATCHES, run=folders[0]))


def test_a_sequential_run(tmp_path, monkeypatch):
    def stopped(folder: Path, answer: int, **changes) -> Path:
        def late(console, line, *rest):
            return stop() if line["number"] == answer else None

        with monkeypatch.context() as patch:
            patch.setattr(sequential, "print_answer", late)
            with pytest.raises(StoppedError):
                sequential.run(one_by_one(folder, strategy="margin", **changes))
        return folder

    def resume(folder: Path):
        made = sequential.run(one_by_one(folder, strategy="margin"))
        return comparable(made.answers), comparable(made.run.rounds)

    expected = resume(tmp_path / "whole")
    now, older = stopped(tmp_path / "now", 9), stopped(tmp_path / "older", 3)
    other = stopped(tmp_path / "other", 9, seed=1)
    found = outcomes(now, older, other, resume, expected, tmp_path)
    same = {case for case, outcome in found.items() if outcome == "same"}
    expected_same = {
        "config.json": {"older"},  # another folder
        "environment.json": {"deleted", "older", "of another run"},
    }
    assert same == {case for case in found if case[1] in expected_same.get(case[0], ())}
    for damage in ("deleted", "emptied", "older"):
        said = found["answers.jsonl", damage]
        assert "answers.jsonl has " in said
        assert "rounds.jsonl was written with " in said
        assert "Restore both from the same moment" in said
    assert "has other answers than those" in found["answers.jsonl", "of another run"]
    assert "rounds.jsonl has none" in found["rounds.jsonl", "deleted"]
    assert "answers.jsonl has 10 answers" in found["rounds.jsonl", "older"]


def test_one_answer_more_is_what_a_kill_leaves(tmp_path):
    made = sequential.run(one_by_one(tmp_path, strategy="margin", budget=3, retrain_every=None))
    extra = made.answers[0] | {"number": len(made.answers)}
    lines = record.json_lines([*made.answers, extra])
    (tmp_path / journal.ANSWERS).write_bytes(lines)
    assert len(journal.read(tmp_path).answers) == 4
    (tmp_path / journal.ANSWERS).write_bytes(lines + record.json_lines([extra | {"number": 4}]))
    with pytest.raises(ValueError, match=r"has 5 answers, and .* was written with 3"):
        journal.read(tmp_path)


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        (
            "rounds.jsonl",
            '"labelled": 2',
            '"labelled": "2", "x": 2',
            "'labelled' '2', which must be a",
        ),
        ("rounds.jsonl", '"fitted": ', '"fitted": 1, "x": ', "'fitted' 1, which must be true or"),
        ("rounds.jsonl", '"train_accuracy"', '"accuracy"', "has no 'train_accuracy'"),
        ("rounds.jsonl", '"count": ', '"number": ', "has no 'count'"),
        ("answers.jsonl", '"label": ', '"label": 1', "'label' 1[0-9], which must be a class from"),
        ("answers.jsonl", '"image": ', '"image": 9999', "'image' 9999.* an index of an image"),
        ("answers.jsonl", '"score": ', '"score": "a", "x": ', "'score' 'a', which must be a"),
        ("answers.jsonl", '"who"', '"whom"', "has no 'who'"),
        ("answers.jsonl", '"foreseen"', '"seen"', "has no 'foreseen'"),
        ("answers.jsonl", '"predicted": ', '"predicted": 1', "'predicted' 1"),
    ],
)
def test_entries_of_another_type_or_range(file, old, new, message, tmp_path, whole):
    copy = shutil.copytree(whole, tmp_path / "copy")
    text = (copy / file).read_text()
    assert old in text
    (copy / file).write_text(new.join(text.rsplit(old, 1)))
    with pytest.raises(ValueError, match=message) as refused:
        journal.read(copy)
    assert f"{file}, line" in str(refused.value)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    sequential.run(one_by_one(folder, strategy="margin", budget=3, retrain_every=None))
    return folder


def test_an_audit(tmp_path, monkeypatch):
    def stopped(folder: Path, results: int, **changes) -> Path:
        written = []

        def late(folder, name, value, real=json_io.put):
            written.append(name)
            return stop() if len(written) > results else real(folder, name, value)

        with monkeypatch.context() as patch:
            patch.setattr(json_io, "put", late)
            with pytest.raises(StoppedError):
                audit.measure(dataclasses.replace(AUDIT, run=folder, **changes))
        return folder

    def resume(folder: Path):
        found = audit.measure(dataclasses.replace(AUDIT, run=folder))
        return report.frame(found).to_csv(index=False)

    expected = resume(tmp_path / "whole")
    now = stopped(tmp_path / "now", 4)  # the network, two controls and a candidate
    other = stopped(tmp_path / "other", 4, seed=1)
    # the trainings of another seed, under the names of these
    trainings = next((other / "trainings").iterdir())
    trainings.rename(trainings.with_name(next((now / "trainings").iterdir()).name))
    found = outcomes(now, tmp_path / "nothing", other, resume, expected, tmp_path)
    same = {case for case, outcome in found.items() if outcome == "same"}
    assert all(damage == "deleted" for _, damage in same)
    assert not any(name.endswith("weights.safetensors") for name, _ in same)
    assert {Path(name).name for name, _ in found} >= {"network.json", "weights.safetensors"}
