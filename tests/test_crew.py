"""What becomes of trials on machines that refuse, die and are lost; no cluster is needed for it."""

import dataclasses
import socket
from pathlib import Path

import pytest

from experiments.studies.study import key_of
from experiments.sweep import hand, machines, parcel
from experiments.sweep.carry import note, read_note
from experiments.sweep.cluster import Cluster
from experiments.sweep.crew import Crew
from experiments.sweep.executor import Said, Started, Tick
from experiments.sweep.hired import Hired, Lost, Raised
from experiments.sweep.installed import Installed, installed, source
from experiments.sweep.machines import Machine, Machines, Need
from experiments.sweep.task import Outcome, Task
from experiments.sweep.worker import Worker
from pipelines import digits, record
from pipelines.errors import PipelineError

ROOT = Path(__file__).parent.parent
OWN = installed()


class Call:
    """A method of a worker that is somewhere else; what it is asked is kept."""

    def __init__(self, name):
        self._name = name

    def remote(self, *args):
        return self._name, args


class Actor:
    host, do, rounds, close = Call("host"), Call("do"), Call("rounds"), Call("close")


class Fake(Machines):
    """Machines whose workers answer as a test says."""

    def __init__(self, rooms, says):
        self.rooms, self.says = rooms, says
        self.refused, self.ended, self.most, self.deaths = set(), [], 0, 0

    def now(self):
        rooms = self.rooms.items()
        return [Machine(name, name, room) for name, room in rooms if name not in self.refused]

    def places(self, hired, count):
        on = [one.node for one in hired]
        free = [one for one in self.now() for _ in range(one.room - on.count(one.node))]
        return free[:count]

    def share(self, work):
        return work

    def hire(self, machine, work, token):
        return Hired(Actor(), machine.node, machine.name)

    def heard(self, hired, seconds):
        self.most = max(self.most, len(hired))
        for one in hired:
            if one.reference is not None:
                one.answer, one.reference = self.says(self, one, *one.reference), None
                return one
        return None

    def rounds(self, hired):
        return {one.task.key: 3 for one in hired if one.task}

    def refuse(self, node):
        self.refused.add(node)

    def died(self, node):
        self.deaths += 1
        return self.deaths >= 3

    def end(self, hired):
        self.ended += hired


def host(in_place=True, **changes) -> hand.Host:
    return hand.Host("machine", OWN._replace(**changes), in_place)


def good(fake, one, asked, args):
    """Does what it is asked."""
    if asked == "host":
        return host()
    return Outcome(one.task.key, "done", 1.0), {}


def tasks(folder, count) -> list[Task]:
    configs = [dataclasses.replace(digits.DEFAULTS, seed=seed) for seed in range(count)]
    return [
        Task(key_of("run", one.record()), dataclasses.replace(one, run=folder / f"{one.seed}"))
        for one in configs
    ]


def carried(folder, fake, count=3, limit=None) -> list:
    crew = Crew(fake, Worker(), hand.Token(folder / "token", ""), tasks(folder, count), limit)
    try:
        return list(crew.work())
    finally:
        crew.close()


def ends(events) -> list[str]:
    return [event.state for event in events if isinstance(event, Outcome)]


def said(events) -> list[str]:
    return [event.text for event in events if isinstance(event, Said)]


def test_each_task_ends_once_and_workers_are_kept(tmp_path):
    fake = Fake({"a": 2, "b": 1}, good)
    events = carried(tmp_path, fake, 7)
    assert ends(events) == ["done"] * 7
    assert len([event for event in events if isinstance(event, Started)]) == 7
    assert fake.most == 3
    assert len(fake.ended) == 3
    limited = Fake({"a": 2, "b": 1}, good)
    assert ends(carried(tmp_path, limited, 7, limit=2)) == ["done"] * 7
    assert limited.most == 2
    few = Fake({"a": 8}, good)
    carried(tmp_path, few, 2)
    assert few.most == 2  # no more than there is work for


def test_a_lost_machine_has_its_trials_done_elsewhere(tmp_path):
    patience = []

    def says(fake, one, asked, args):
        if asked == "do":
            patience.append(args[2])
            if one.node == "a":
                del fake.rooms["a"]
                return Lost(True, "its node has died")
        return good(fake, one, asked, args)

    events = carried(tmp_path, Fake({"a": 1, "b": 1}, says))
    assert ends(events) == ["done"] * 3
    assert said(events) == ["a was lost; its trial is tried again"]
    assert sorted(patience) == [0, 0, 0, 60]  # its process there may not have ended yet


def test_a_trial_that_kills_its_process_is_tried_twice(tmp_path):
    deadly = tasks(tmp_path, 2)[0].key
    text = "The actor died.\nits worker process has died. Detail: code 2. Some common causes: …"

    def says(fake, one, asked, args):
        dies = asked == "do" and args[0].key == deadly
        return Lost(False, text) if dies else good(fake, one, asked, args)

    events = carried(tmp_path, Fake({"a": 1}, says), 2)
    assert ends(events) == ["failed", "done"]
    (outcome,) = [event for event in events if isinstance(event, Outcome) and event.message]
    cause = "its worker process has died. Detail: code 2."
    what = "a process on a died, and it was attempt 2 of this trial"
    assert outcome.message == f"{what}: {cause}"
    written = read_note(tmp_path / "0")
    assert written is not None
    assert written["state"] == "failed"
    assert written["attempts"][0]["traceback"] == text
    assert read_note(tmp_path / "1") is None


def test_a_trial_that_takes_its_machines_down_is_given_up(tmp_path):
    def says(fake, one, asked, args):
        return Lost(True, "gone") if asked == "do" else good(fake, one, asked, args)

    events = carried(tmp_path, Fake({"a": 1}, says), 1)
    assert ends(events) == ["failed"]
    assert len(said(events)) == 2


def test_what_a_worker_raises_is_the_trials_failure(tmp_path):
    def says(fake, one, asked, args):
        raised = Raised("OSError: no space\nleft", "Traceback: …")
        return raised if asked == "do" else good(fake, one, asked, args)

    (outcome,) = [
        event for event in carried(tmp_path, Fake({"a": 1}, says), 1) if isinstance(event, Outcome)
    ]
    assert outcome.message == "OSError: no space left"
    written = read_note(tmp_path / "0")
    assert written is not None
    assert written["attempts"][0]["traceback"] == "Traceback: …"


def test_a_machine_with_another_version_is_left_alone(tmp_path):
    def says(fake, one, asked, args):
        other = asked == "host" and one.node == "a"
        return host(source="0123") if other else good(fake, one, asked, args)

    events = carried(tmp_path, Fake({"a": 1, "b": 1}, says))
    assert ends(events) == ["done"] * 3
    (text,) = said(events)
    assert text.startswith(f"a is not used: it has ntk-lookahead {OWN.version}, source 0123, here")
    assert {event.worker for event in events if isinstance(event, Started)} == {"b"}
    with pytest.raises(PipelineError, match="no machine of the cluster can be used. a is not"):
        carried(tmp_path, Fake({"a": 1}, says))


def test_other_libraries_are_told_and_used(tmp_path):
    def says(fake, one, asked, args):
        return host(libraries=("torch 1",)) if asked == "host" else good(fake, one, asked, args)

    events = carried(tmp_path, Fake({"a": 1}, says))
    assert ends(events) == ["done"] * 3
    assert "a has torch 1, here is torch 2" in said(events)[0]


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (Raised("ModuleNotFoundError: No module named 'pipelines'", ""), "cannot begin there: Mod"),
        (Lost(False, "out of memory"), "workers end there before they begin: out of memory"),
    ],
)
def test_a_machine_where_no_worker_begins_is_left_alone(answer, words, tmp_path):
    def says(fake, one, asked, args):
        return answer

    fake = Fake({"a": 1}, says)
    with pytest.raises(PipelineError, match=words):
        carried(tmp_path, fake)
    assert len(fake.ended) == (3 if isinstance(answer, Lost) else 1)


def test_a_cluster_that_has_lost_all_its_machines_is_waited_for(tmp_path):
    waits = []

    class Empty(Fake):
        def heard(self, hired, seconds):
            if not hired:
                waits.append(seconds)
                self.rooms = {"late": 1} if len(waits) == 3 else {}
                return None
            return super().heard(hired, seconds)

    events = carried(tmp_path, Empty({}, good))
    assert ends(events) == ["done"] * 3
    assert said(events) == ["no machine of the cluster has room for a worker; waiting for one"]


def test_records_from_elsewhere_are_put_in_place_under_a_lock(tmp_path):
    (first, second) = tasks(tmp_path, 2)
    first.folder.mkdir()
    (first.folder / "weights-000.safetensors").write_bytes(b"old")
    (first.folder / ".pending").mkdir()

    def says(fake, one, asked, args):
        if asked == "host":
            return host(in_place=False)
        if not getattr(fake, "ticked", False):
            fake.ticked = True
            return None
        with pytest.raises(record.HeldError), record.only_writer(one.task.folder):
            pass
        found = args[1] | {"rounds.jsonl": b"{}\n", "weights-001.safetensors": b"new"}
        found.pop("weights-000.safetensors", None)
        return Outcome(one.task.key, "done", 1.0), found

    class Slow(Fake):
        def heard(self, hired, seconds):
            before = [one.reference for one in hired]
            one = super().heard(hired, seconds)
            if one is not None and one.answer is None:
                one.reference = before[hired.index(one)]
                return None
            return one

    events = carried(tmp_path, Slow({"a": 1}, says), 2)
    assert ends(events) == ["done"] * 2
    assert Tick({first.key: 3}) in events
    names = sorted(path.name for path in first.folder.iterdir())
    assert names == [".lock", "rounds.jsonl", "weights-001.safetensors"]
    assert (second.folder / "rounds.jsonl").read_bytes() == b"{}\n"
    with record.only_writer(first.folder):
        assert ends(carried(tmp_path, Slow({"a": 1}, says), 2)) == ["held", "done"]


def test_a_record_says_how_far_it_is_when_all_else_is_there(tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(parcel, "replace", lambda path, data: written.append(path.name))
    names = ["trial.json", "a.csv", "rounds.jsonl", "weights-001.safetensors", "answers.jsonl"]
    parcel.unpack(tmp_path, dict.fromkeys([*names, "pieces/x.json"], b""))
    assert written[-3:] == ["answers.jsonl", "rounds.jsonl", "trial.json"]
    assert set(written[:3]) == {"a.csv", "weights-001.safetensors", "x.json"}
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "x").write_bytes(b"1")
    (tmp_path / ".lock").write_bytes(b"")
    assert parcel.pack(tmp_path) == {"deep/x": b"1"}
    assert parcel.pack(tmp_path / "none") == {}


@pytest.mark.parametrize("sees", [True, False])
def test_a_hand_works_in_the_sweeps_folder_if_it_sees_it(sees, tmp_path, monkeypatch):
    (tmp_path / "token").write_text("secret")
    worked = []

    def work(task):
        worked.append(task)
        with (task.folder / "rounds.jsonl").open("a") as file:
            file.write("{}\n")
        note(task, Outcome(task.key, "done", 1.0))
        return Outcome(task.key, "done", 1.0)

    monkeypatch.setenv("NTK_DATA_DIR", str(tmp_path / "mine"))
    one = hand.Hand(work, hand.Token(tmp_path / "token", "secret" if sees else "other"))
    assert one.host()[1:] == (OWN, sees)
    (task,) = tasks(tmp_path, 1)
    task = Task(task.key, dataclasses.replace(task.config, data_dir=tmp_path / "theirs"))
    task.folder.mkdir()
    outcome, files = one.do(task, {"rounds.jsonl": b"{}\n"}, 0.0)
    assert outcome.state == "done"
    assert worked[0].config.data_folder == tmp_path / "mine"  # this machine's own
    assert (worked[0].folder == task.folder) == sees
    assert files.get("rounds.jsonl", b"").count(b"\n") == (0 if sees else 2)
    assert ("trial.json" in files) == (not sees)
    one.close()
    assert worked[0].folder.parent.exists() == sees
    images = Task(task.key, dataclasses.replace(task.config, dataset="images"))
    hand.Hand(work, hand.Token(tmp_path / "token", "secret")).do(images, {}, 0.0)
    assert worked[1].config.data_folder == tmp_path / "theirs"


def test_a_hand_waits_for_a_process_that_is_about_to_end(tmp_path, monkeypatch):
    monkeypatch.setattr(hand, "_PAUSE", 0.0)
    (tmp_path / "token").write_text("secret")
    ends: list[Outcome] = [Outcome("", "held", 0.0)] * 2 + [Outcome("", "done", 0.0)]
    left = iter(ends)
    one = hand.Hand(
        lambda task: next(left),
        hand.Token(tmp_path / "token", "secret"),
    )
    (task,) = tasks(tmp_path, 1)
    assert one.do(task, {}, 60.0)[0].state == "done"
    left = iter(ends)
    assert one.do(task, {}, 0.0)[0].state == "held"


def test_the_source_is_told_apart_by_its_last_letter(tmp_path):
    assert OWN == Installed(OWN.version, source(ROOT), OWN.libraries)
    (tmp_path / "kernel").mkdir()
    file = tmp_path / "kernel" / "one.py"
    digests = set()
    for text in ("a = 1", "a = 2"):
        file.write_text(text)
        digests.add(source(tmp_path))
    file.rename(file.with_name("two.py"))
    digests.add(source(tmp_path))
    assert len(digests) == 3


def test_without_ray_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(PipelineError, match=r"ntk-lookahead\[ray\]"):
        Cluster(tmp_path, "auto", Need())


def test_an_address_at_which_nobody_answers(tmp_path):
    pytest.importorskip("ray")
    with socket.socket() as taken:  # bound, and nobody listens
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(PipelineError, match=f"no Ray cluster at '{address}' .*refused"):
            Cluster(tmp_path, address, Need())


def test_needs_that_mean_nothing():
    for need in ({"cpus": 0.0}, {"gpus": -1.0}):
        with pytest.raises(PipelineError, match="a worker cannot have"):
            Need(**need)


def test_ray_is_imported_when_a_cluster_is_asked_for():
    for room in ("trainer", "bridge", "kernel", "pipelines"):
        for path in (ROOT / room).rglob("*.py"):
            lines = [line for line in path.read_text("utf-8").splitlines() if "import" in line]
            asks = [line for line in lines if line.split()[:2] in (["import", "ray"],)]
            asks += [line for line in lines if line.split()[:1] == ["from"] and " ray." in line]
            assert all(line.startswith("    ") for line in asks), path
            assert not asks or path == Path(machines.__file__), path
