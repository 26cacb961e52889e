"""Both packages as they are uploaded: their files, their metadata, and their wheels in environments without torch."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email import message_from_bytes
from email.message import Message
from pathlib import Path
from typing import Any

import pytest
from empty_environment import install_wheel
from once import once
from small_bundle import text_bundle
from tiers import extended

import adapter_export as ae
from adapter_export.errors import MissingExtraError

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
ADDRESS = PROJECT["tool"]["hatch"]["metadata"]["hooks"]["custom"]
TEXT = "who wrote it?"


@pytest.fixture(scope="module")
@extended
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the wheels and the sdists of both packages."""

    def make(folder: Path) -> None:
        staged = tmp_path_factory.mktemp("staged") / "runtime"
        subprocess.run([sys.executable, ROOT / "packages" / "runtime" / "stage.py", staged], check=True)
        for source in (ROOT, staged):
            build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-t", "sdist", "-d", str(folder)]
            subprocess.run(build, cwd=source, check=True, capture_output=True)

    return once(tmp_path_factory, "distributions", make)


def _wheel(built: Path, package: str) -> Path:
    (wheel,) = built.glob(f"{package}-*.whl")
    return wheel


def _metadata(built: Path, package: str) -> Message:
    """The metadata that PyPI shows."""
    with zipfile.ZipFile(_wheel(built, package)) as wheel:
        (name,) = (name for name in wheel.namelist() if name.endswith("/METADATA"))
        return message_from_bytes(wheel.read(name))


def _hook(**config: str) -> Any:
    """The hook that makes metadata, for a repository at some address."""
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.RepositoryMetadata(str(ROOT), {**ADDRESS, **config})


def test_twine_accepts_both_packages(built: Path) -> None:
    check = [sys.executable, "-m", "twine", "check", "--strict", *map(str, built.iterdir())]
    done = subprocess.run(check, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("PASSED") == 4


def test_the_wheel_holds_the_package_its_types_and_the_schemas(built: Path) -> None:
    with zipfile.ZipFile(_wheel(built, "adapter_export")) as wheel:
        names = set(wheel.namelist())
    package = [path for path in (ROOT / "adapter_export").rglob("*") if path.is_file() and path.suffix != ".pyc"]
    schemas = {f"adapter_export/schemas/{path.name}" for path in (ROOT / "schemas").glob("*.schema.json")}
    files = {path.relative_to(ROOT).as_posix() for path in package} | schemas
    assert "adapter_export/py.typed" in files
    assert {name for name in names if ".dist-info/" not in name} == files


def test_sdist_contains_the_files_of_the_tests(built: Path) -> None:
    (path,) = built.glob("adapter_export-*.tar.gz")
    with tarfile.open(path) as sdist:
        files = {name.partition("/")[2] for name in sdist.getnames()}
    assert {"pyproject.toml", "hatch_build.py", "README.md", "CHANGELOG.md", "LICENSE", "Makefile"} <= files
    assert {
        "tests/conftest.py",
        "schemas/make_schemas.py",
        "examples/cpp/CMakeLists.txt",
        "docs/reference/format.md",
    } <= files
    assert {".github/workflows/tests.yml", ".pre-commit-config.yaml", "CITATION.cff", "packages/release.py"} <= files
    assert not [name for name in files if "__pycache__" in name or "node_modules" in name]


def test_the_sdist_of_the_runtime_builds_its_wheel(built: Path, tmp_path: Path) -> None:
    (path,) = built.glob("adapter_export_runtime-*.tar.gz")
    with tarfile.open(path) as sdist:
        sdist.extractall(tmp_path, filter="data")
    (source,) = tmp_path.iterdir()
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path], cwd=source, check=True)
    again, first = _wheel(tmp_path, "adapter_export_runtime"), _wheel(built, "adapter_export_runtime")
    with zipfile.ZipFile(again) as one, zipfile.ZipFile(first) as other:
        assert sorted(one.namelist()) == sorted(other.namelist())


@pytest.mark.parametrize("package", ["adapter_export", "adapter_export_runtime"])
def test_readme_on_pypi_has_no_broken_links(built: Path, package: str) -> None:
    """A README on PyPI has no files beside it, so a relative link is broken there."""
    metadata = _metadata(built, package)
    shown = str(metadata.get_payload())
    links = re.findall(r"\]\(([^)]+)\)", shown)
    assert not [link for link in links if not link.startswith(("https://", "#"))]
    urls = dict(url.split(", ") for url in metadata.get_all("Project-URL", []))
    assert bool(urls) == bool(ADDRESS["repository"])
    assert all(url.startswith(ADDRESS["repository"]) for url in urls.values())


def test_a_repository_gives_links_to_the_files_of_the_release() -> None:
    address = "https://example.com/owner/name"
    metadata: dict[str, Any] = {"version": "1.2.3"}
    _hook(repository=address).update(metadata)
    shown, text = metadata["readme"]["text"], (ROOT / "README.md").read_text("utf-8")
    links = re.findall(r"\]\(([^)]+)\)", shown)
    assert len(links) == len(re.findall(r"\]\(([^)]+)\)", text))
    images = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", shown)
    own = [link for link in links if link.startswith(address)]
    assert own
    for link in own:
        view, path = re.fullmatch(rf"{address}/(raw|blob)/v1\.2\.3/([^#]+)(?:#.*)?", link).groups()  # type: ignore[union-attr]
        assert (ROOT / path).exists()
        assert (view == "raw") == (link in images)
    assert {"Documentation", "Repository", "Issues", "Changelog"} <= set(metadata["urls"])
    assert all(url.startswith(address) for url in metadata["urls"].values())


def test_readme_without_a_repository_keeps_only_link_texts() -> None:
    readme = _hook(repository="", folder="packages/runtime").readme
    assert readme("see [here](../../docs/a.md#b), ![a picture](docs/a.svg)", "1") == "see here, a picture"
    assert readme("[out](https://semver.org) [in](#use)", "1") == "[out](https://semver.org) [in](#use)"
    readme = _hook(repository="https://example.com/o/n", folder="packages/runtime").readme
    assert readme("[here](../../docs/a.md#b)", "1") == "[here](https://example.com/o/n/blob/v1/docs/a.md#b)"


def test_no_file_names_an_unowned_project_address() -> None:
    """The address of the repository is in one place, so no other file of the project may name one."""
    own = re.compile(r"(github\.com|githubusercontent\.com|pypi\.org/project|npmjs\.com/package)/adapter-export")
    places = [ROOT / name for name in ("adapter_export", "docs", "examples", "packages", "schemas", ".github")]
    files = [
        path for place in places for path in place.rglob("*") if path.is_file() and "node_modules" not in path.parts
    ]
    files += [path for path in ROOT.iterdir() if path.suffix in {".md", ".toml", ".cff", ".py"}]
    found = [path for path in files if path.suffix != ".pyc" and own.search(path.read_text("utf-8", errors="replace"))]
    assert not found


def test_missing_extras_are_named_for_pypi_and_checkouts() -> None:
    error = str(MissingExtraError("tokenizers", extra="text", needed_for="reading texts"))
    assert "`pip install 'adapter-export[text]'`" in error
    assert "`pip install '.[text]'` in a checkout" in error
    extras = PROJECT["project"]["optional-dependencies"]
    named = {
        extra
        for path in (ROOT / "adapter_export").rglob("*.py")
        for extra in re.findall(r'(?:extra=|require\("[^"]+", )"(\w+)"', path.read_text("utf-8"))
    } - {"forbid"}
    assert {"text", "image", "torch", "ray"} <= named <= set(extras)


def test_documents_install_nothing_by_a_name_that_is_not_on_pypi() -> None:
    """Anybody could publish a package of that name. `README.md` says how to install from a checkout."""
    pages = {*ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/*/README.md")} - {
        ROOT / "docs" / "project" / "releasing.md"
    }
    found = [line for page in pages for line in page.read_text("utf-8").splitlines() if "pip install" in line]
    assert found
    assert not [line for line in found if "adapter-export" in line.partition("pip install")[2]]


def test_the_wheel_builds_and_runs_bundles_where_torch_is_missing(
    built: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    bundle = text_bundle(tmp_path_factory)
    python = install_wheel(_wheel(built, "adapter_export"), tmp_path / "venv", ["text"])

    def said(*words: str | Path) -> Any:
        command = [python, "-I", "-m", "adapter_export", *words, "--json"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(done.stdout)

    assert subprocess.run([python, "-I", "-c", "import torch"], capture_output=True, check=False).returncode == 1
    assert said("verify", bundle)["verdict"] == "passed"
    (answer,) = ae.open_bundle(bundle).texts().answer([TEXT], "topic")
    found = said("run", bundle, "--adapter", "topic", "--text", TEXT)
    assert answer.document().items() <= found["rows"][0].items()
    adapter = bundle / "adapters" / "topic"
    said("build", bundle.parent / "base.onnx", "--adapters", f"topic={adapter}", "-o", tmp_path / "made")
    assert said("verify", tmp_path / "made")["verdict"] == "passed"


def test_the_wheel_of_the_runtime_runs_a_bundle(
    built: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    bundle = text_bundle(tmp_path_factory)
    python = install_wheel(_wheel(built, "adapter_export_runtime"), tmp_path / "venv", ["text"])

    def ran(*words: str | Path) -> subprocess.CompletedProcess[str]:
        command = [python, "-I", "-m", "adapter_export_runtime", *words]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    checked = ran(bundle)
    assert (checked.returncode, checked.stdout) == (0, "golden data match; adapters: topic, tone, mood\n"), (
        checked.stderr
    )
    (answer,) = ae.open_bundle(bundle).texts().answer([TEXT], "topic")
    assert json.loads(ran(bundle, "--adapter", "topic", "--text", TEXT).stdout) == answer.document()
    missing = ran(tmp_path / "nowhere")
    assert missing.returncode == 3
    assert "error: " in missing.stderr
    assert "Traceback" not in missing.stderr
    assert ran(bundle, "--text", TEXT).returncode == 2
