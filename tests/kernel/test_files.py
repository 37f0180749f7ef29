"""Files are replaced whole, flushed in order, and through no link."""

import errno
import os
import stat

import pytest

from kernel.files import remove_temporaries, write_file, write_files


def test_a_file_is_on_the_disk_before_it_takes_its_place_and_its_name_after(tmp_path, monkeypatch):
    done = []

    def fsync(descriptor, real=os.fsync):
        kind = "folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file"
        done.append((kind, (tmp_path / "file").exists()))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    write_file(tmp_path / "file", b"whole")
    assert done == [("file", False), ("folder", True)]
    assert (tmp_path / "file").read_bytes() == b"whole"


@pytest.mark.skipif(os.name != "posix", reason="links and modes of POSIX")
def test_a_planted_link_is_not_followed(tmp_path, monkeypatch):
    theirs = tmp_path / "theirs"
    theirs.write_bytes(b"precious")
    ours = tmp_path / "ours"
    ours.mkdir()
    for name in ("report", ".report.new"):  # the target, and a name that could be guessed
        (ours / name).symlink_to(theirs)
    write_file(ours / "report", b"new")
    assert theirs.read_bytes() == b"precious"
    assert not (ours / "report").is_symlink()
    assert (ours / "report").read_bytes() == b"new"
    # even where the name was guessed
    monkeypatch.setattr("secrets.token_hex", lambda count: "0" * 2 * count)
    (ours / f".report.{'0' * 16}.new").symlink_to(theirs)
    with pytest.raises(FileExistsError):
        write_file(ours / "report", b"newer")
    assert theirs.read_bytes() == b"precious"
    assert (ours / "report").read_bytes() == b"new"


@pytest.mark.skipif(os.name != "posix", reason="links and modes of POSIX")
def test_a_file_has_the_mode_of_any_other(tmp_path):
    (tmp_path / "plain").write_bytes(b"")
    write_file(tmp_path / "file", b"")
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("failing", [1, 2, 3])
def test_several_files_are_replaced_together_or_not_at_all(tmp_path, monkeypatch, call, failing):
    (tmp_path / "a").write_bytes(b"old a")
    (tmp_path / "c").write_bytes(b"old c")
    real, calls = getattr(os, call), []

    def full(*arguments, **options):
        calls.append(arguments)
        if len(calls) == failing:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*arguments, **options)

    monkeypatch.setattr(os, call, full)
    contents = {tmp_path / name: f"new {name}".encode() for name in "abc"}
    with pytest.raises(OSError, match="No space left"):
        write_files(contents)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {
        "a": b"old a",
        "c": b"old c",
    }
    write_files(contents)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == contents


def test_a_target_that_is_a_folder_leaves_the_others(tmp_path):
    (tmp_path / "b").mkdir()
    with pytest.raises(OSError, match="directory"):
        write_files({tmp_path / "a": b"", tmp_path / "b": b""})
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_temporary_files_of_a_killed_process_are_removed(tmp_path, monkeypatch):
    renamed = []
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", lambda source, target: renamed.append(source))
        write_file(tmp_path / "file", b"")
    renamed[0].write_bytes(b"half")
    others = {".mine.new", ".file.lock", "file.0123456789abcdef.new"}
    for name in others:
        (tmp_path / name).write_bytes(b"")
    remove_temporaries(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == others
