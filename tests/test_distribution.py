"""What is uploaded: a wheel with what users need and nothing else, and a README whose links work on PyPI."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email import message_from_bytes
from email.message import Message
from pathlib import Path

import pytest
from once import once

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the wheel and the sdist."""

    def make(folder: Path) -> None:
        build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-t", "sdist", "-d", str(folder)]
        subprocess.run(build, cwd=ROOT, check=True, capture_output=True)

    return once(tmp_path_factory, "distributions", make)


@pytest.fixture(scope="module")
def names(built: Path) -> set[str]:
    """The files of the wheel."""
    with zipfile.ZipFile(next(built.glob("*.whl"))) as wheel:
        return set(wheel.namelist())


@pytest.fixture(scope="module")
def metadata(built: Path) -> Message:
    """What PyPI shows."""
    with zipfile.ZipFile(next(built.glob("*.whl"))) as wheel:
        (name,) = (name for name in wheel.namelist() if name.endswith("/METADATA"))
        return message_from_bytes(wheel.read(name))


def test_twine_finds_nothing(built: Path) -> None:
    check = [sys.executable, "-m", "twine", "check", "--strict", *map(str, built.iterdir())]
    done = subprocess.run(check, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("PASSED") == 2


def test_the_wheel_holds_the_package_its_types_and_the_schemas(names: set[str]) -> None:
    package = [path for path in (ROOT / "adapter_export").rglob("*") if path.is_file() and path.suffix != ".pyc"]
    schemas = {f"adapter_export/schemas/{path.name}" for path in (ROOT / "schemas").glob("*.json")}
    files = {path.relative_to(ROOT).as_posix() for path in package} | schemas
    assert "adapter_export/py.typed" in files
    assert {name for name in names if ".dist-info/" not in name} == files


def test_the_sdist_holds_what_the_tests_need(built: Path) -> None:
    with tarfile.open(next(built.glob("*.tar.gz"))) as sdist:
        files = {name.partition("/")[2] for name in sdist.getnames()}
    assert {"pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE", "Makefile"} <= files
    assert {"tests/conftest.py", "schemas/make_schemas.py", "examples/cpp/CMakeLists.txt", "docs/format.md"} <= files
    assert not [name for name in files if "__pycache__" in name or "node_modules" in name]


def test_links_on_pypi_lead_to_the_files_of_this_release(metadata: Message) -> None:
    shown = str(metadata.get_payload())
    links = re.findall(r"\]\(([^)]+)\)", shown)
    assert len(links) == len(re.findall(r"\]\(([^)]+)\)", (ROOT / "README.md").read_text("utf-8")))
    assert not [link for link in links if not link.startswith("https://")]
    own = [link.partition(f"/v{metadata['Version']}/") for link in links if "adapter-export/adapter-export" in link]
    assert own
    assert all((ROOT / path.partition("#")[0]).exists() for _, _, path in own)
    images = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", shown)
    assert images
    assert all(link.startswith("https://raw.githubusercontent.com/") for link in images)


def test_the_project_has_its_addresses(metadata: Message) -> None:
    urls = dict(url.split(", ") for url in metadata.get_all("Project-URL", []))
    assert urls == PROJECT["urls"]
    assert {"Documentation", "Repository", "Issues", "Changelog"} <= set(urls)
