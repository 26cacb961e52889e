"""Environments with only a wheel and its requirements."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from collections.abc import Collection, Iterator
from importlib.metadata import Distribution, PathDistribution, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


def install_wheel(wheel: Path, folder: Path, extras: Collection[str] = ()) -> Path:
    """Install a wheel into a new environment, and return the environment's Python.

    Distributions that the wheel requires are links to those of the current environment, so nothing is downloaded. pip
    verifies that all requirements are met.
    """
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    (packages,) = folder.glob("lib/*/site-packages")
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        described = PathDistribution(zipfile.Path(archive, metadata.removesuffix("METADATA")))
        required = {one.name: one for one in _required(described, extras)}
    for one in required.values():
        for name in {file.parts[0] for file in one.files or ()} - {"..", "__pycache__"}:
            if not (packages / name).exists():  # two distributions may share a namespace
                (packages / name).symlink_to(Path(str(one.locate_file(name))))
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check"]
    for words in (["install", "--quiet", "--no-index", "--no-deps", wheel], ["check"]):
        done = subprocess.run([*pip, *words], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    return python


def _required(one: Distribution, extras: Collection[str]) -> Iterator[Distribution]:
    """Yield what a distribution with some extras requires, directly and indirectly."""
    for line in one.requires or ():
        needed = Requirement(line)
        if needed.marker and not any(needed.marker.evaluate({"extra": extra}) for extra in (extras or {""})):
            continue
        if canonicalize_name(needed.name) == canonicalize_name(one.name):  # an extra made of others
            yield from _required(one, needed.extras)
        else:
            found = distribution(needed.name)
            yield found
            yield from _required(found, needed.extras)
