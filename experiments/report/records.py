"""The records of a study's trials in one file, for a repository or another machine.

From a folder of records to a ZIP archive, which unpacked below any `--runs` is reported on, and
gone on with, as the records themselves. Of a trial that is done it has what is read, not the
weights; of one that is begun everything that it goes on from.
"""

import io
import json
import zipfile
from pathlib import Path
from typing import Any

from experiments.report.results import PLACES
from experiments.studies.study import Study
from experiments.sweep.parcel import Files, pack
from experiments.sweep.recorded import recorded, state

ARCHIVE = "records.zip"
_READ = {".json", ".jsonl", ".csv"}
_WHERE = {*PLACES, "platform", "process"}  # in JSON, what says where something was done
_DATE = (1980, 1, 1, 0, 0, 0)  # the same records are the same archive


def archive(study: Study, size: str, root: Path, places: bool = True) -> bytes:
    """Every trial that is done or begun, in a folder of its own, as a ZIP archive.

    Args:
        study: the study.
        size: small or paper.
        root: a folder that holds records at any depth.
        places: whether it says where records lay and on which machines they were made.

    Raises:
        UnknownNameError: no such size.
        OSError: a record cannot be read.
    """
    trials = {trial.key: trial for trial in study.trials(size)}
    found = recorded(root, trials.values())
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as packed:
        for key, trial in trials.items():
            standing = state(trial, found.get(key))
            if standing not in ("done", "begun"):
                continue
            for name, content in _kept(pack(found[key]), standing == "done").items():
                entry = zipfile.ZipInfo(f"{trial.folder}/{name}", _DATE)
                entry.compress_type = zipfile.ZIP_DEFLATED
                packed.writestr(entry, content if places else _nowhere(name, content))
    return stream.getvalue()


def _kept(files: Files, done: bool) -> Files:
    if not done:
        return files
    return {name: content for name, content in files.items() if Path(name).suffix in _READ}


def _nowhere(name: str, content: bytes) -> bytes:
    """A file without what says where it was made; lines of JSON have nothing of that."""
    if Path(name).suffix != ".json":
        return content
    return (json.dumps(_dropped(json.loads(content)), indent=1) + "\n").encode()


def _dropped(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _dropped(own) for key, own in value.items() if key not in _WHERE}
    return [_dropped(own) for own in value] if isinstance(value, list) else value
