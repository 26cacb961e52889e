"""The check before a release: its requirements and its notes."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import adapter_export

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "packages" / "release.py"
VERSION = adapter_export.__version__


@pytest.fixture
def ready(tmp_path: Path) -> Path:
    """A copy of the files that the check reads, with what a release needs."""
    for name in ("pyproject.toml", "CITATION.cff", "adapter_export/version.py", "examples/node/package.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, tmp_path / name)
    project = tmp_path / "pyproject.toml"
    project.write_text(
        re.sub(r'repository = ".*"', 'repository = "https://example.com/a/b"', project.read_text("utf-8"))
    )
    sections = "## [Unreleased]", f"## [{VERSION}] - 2026-12-01", "### Added", "- A.", "## [0.0.1] - 2026-01-01", "- B."
    text = "".join(f"{line}\n\n" for line in ("# Changelog", *sections))
    (tmp_path / "CHANGELOG.md").write_text(text, encoding="utf-8")
    return tmp_path


@pytest.fixture(scope="module")
def release() -> ModuleType:
    spec = importlib.util.spec_from_file_location("release", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_tree_that_is_ready_has_notes(release: ModuleType, ready: Path) -> None:
    assert release.faults(ready, f"v{VERSION}") == []
    assert release.notes(ready, VERSION) == "### Added\n\n- A."


@pytest.mark.parametrize(
    ("name", "old", "new", "fault"),
    [
        ("CITATION.cff", f"version: {VERSION}", "version: 9.9.9", "CITATION.cff does not state"),
        ("adapter_export/version.py", VERSION, "9.9.9", "version.py does not state"),
        ("examples/node/package.json", f'"version": "{VERSION}"', '"version": "9.9.9"', "package.json does not state"),
        ("CHANGELOG.md", f"[{VERSION}] - 2026-12-01", f"[{VERSION}]", "CHANGELOG.md has no section"),
        ("pyproject.toml", "https://example.com/a/b", "", "does not state the address"),
        ("pyproject.toml", f'version = "{VERSION}"', 'version = "9.9.9"', f"the tag v{VERSION} is not v9.9.9"),
    ],
)
def test_release_check_names_each_fault(
    release: ModuleType, ready: Path, name: str, old: str, new: str, fault: str
) -> None:
    path = ready / name
    assert old in path.read_text("utf-8")
    path.write_text(path.read_text("utf-8").replace(old, new, 1), encoding="utf-8")
    assert any(fault in found for found in release.faults(ready, f"v{VERSION}"))


@pytest.mark.starts_program
def test_the_command_fails_for_another_tag(tmp_path: Path) -> None:
    command = [sys.executable, SCRIPT, "v9.9.9", "--notes", tmp_path / "notes.md"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f"error: the tag v9.9.9 is not v{VERSION}" in done.stderr
    assert not (tmp_path / "notes.md").exists()
