"""The wheel holds the product whole and nothing of the research, and is imported without it."""

import subprocess
import sys
import zipfile
from pathlib import Path

from hatchling.builders.wheel import WheelBuilder

ROOT = Path(__file__).parent.parent
PACKAGES = ("trainer", "bridge", "kernel", "pipelines")
IMPORT_ALL = f"""
import importlib, os, pkgutil, sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("experiments", "benchmarks", "tests"):
            raise ImportError(f"{{name}} is in no wheel")

sys.meta_path.insert(0, Refuse())
for package in {PACKAGES}:
    root = importlib.import_module(package)
    assert root.__file__.startswith(os.getcwd()), root.__file__
    for module in pkgutil.walk_packages(root.__path__, package + "."):
        importlib.import_module(module.name)
"""


def test_the_wheel_is_the_product_and_is_imported_without_experiments(tmp_path):
    (wheel,) = WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
        archive.extractall(tmp_path / "unpacked")
    files = [path for package in PACKAGES for path in (ROOT / package).rglob("*") if path.is_file()]
    assert packed == {
        path.relative_to(ROOT).as_posix() for path in files if "__pycache__" not in path.parts
    }
    assert any(name.endswith(".html") for name in packed)  # the report's templates
    command = [sys.executable, "-c", IMPORT_ALL]
    done = subprocess.run(
        command, cwd=tmp_path / "unpacked", capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
