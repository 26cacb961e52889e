"""Test tiers, and the cache key of results kept between runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import kept
import pytest
from kept import sources

SUPPORT = Path(__file__).parent / "support"
TESTS = """
import subprocess
import sys

import pytest
from tiers import extended

@pytest.fixture
@extended
def program():
    return None

def test_quick():
    pass

def test_starts_by_mistake():
    subprocess.run([sys.executable, "-c", ""], check=True)

@pytest.mark.starts_program
def test_starts_and_is_quick():
    subprocess.run([sys.executable, "-c", ""], check=True)

@pytest.mark.extended
def test_marked():
    subprocess.run([sys.executable, "-c", ""], check=True)

def test_of_a_fixture(program):
    pass
"""


@pytest.mark.extended
@pytest.mark.parametrize(
    ("options", "passed", "deselected"),
    [
        ([], 3, 2),
        (["--all"], 4, 1),
        (["--nightly"], 5, 0),
        (["test_all.py"], 5, 0),
        (["-k", "test"], 5, 0),
    ],
)
def test_each_tier_runs_its_tests(options: list[str], passed: int, deselected: int, tmp_path: Path) -> None:
    (tmp_path / "test_all.py").write_text(TESTS)
    (tmp_path / "conftest.py").write_text(
        f"import sys\nsys.path.append({str(SUPPORT)!r})\npytest_plugins = ['tiers']\n"
    )
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "nightly.txt").write_text("# why\ntest_all.py::test_mark\n")
    (tmp_path / "pytest.ini").write_text("[pytest]\ntestpaths = .\nmarkers =\n  extended\n  starts_program\n")
    call = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--tiers", *options]
    done = subprocess.run(call, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert f"{passed} passed" in done.stdout, done.stdout
    assert "1 error" in done.stdout, "the test that starts a program by mistake passes, and its teardown fails"
    assert "ERROR test_all.py::test_starts_by_mistake" in done.stdout
    assert (f"{deselected} deselected" in done.stdout) == (deselected > 0)
    assert f"extended {passed - 3:>18} tests" in done.stdout


@pytest.mark.extended
def test_tests_of_graphs_are_collected_without_the_libraries_of_hubs() -> None:
    code = """
import sys
for name in ("cryptography", "huggingface_hub", "httpx2", "model_signing", "OpenSSL"):
    sys.modules[name] = None  # importing it fails
import pytest
sys.exit(pytest.main(["-q", "--collect-only", "-p", "no:cacheprovider", "tests/graph"]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


class TestSources:
    @pytest.fixture
    def root(self, tmp_path: Path) -> Path:
        files = {
            "tests/support/makes.py": "from adapter_export.low import make\nfrom helps import help\n",
            "tests/support/helps.py": "",
            "tests/support/other.py": "",
            "tests/support/builds.py": "import adapter_export as ae\n",
            "adapter_export/__init__.py": "from adapter_export.high import build\n",
            "adapter_export/errors.py": "",
            "adapter_export/low/make.py": "def make():\n    from adapter_export.lower import read\n",
            "adapter_export/low/scanned/kind.py": "",
            "adapter_export/low/style.css": "",
            "adapter_export/lower.py": "from adapter_export import errors\n",
            "adapter_export/high/build.py": "",
        }
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
        return tmp_path

    def test_sources_are_all_files_that_a_module_can_import(self, root: Path) -> None:
        bytecode = root / "adapter_export/low/__pycache__"
        bytecode.mkdir()
        for name in ("make.cpython-311.pyc", "make.cpython-311.pyc.140102794706736"):  # one that is being written
            (bytecode / name).touch()
        found = {file.relative_to(root).as_posix() for file in sources(root, "makes")}
        assert found == {
            "tests/support/makes.py",
            "tests/support/helps.py",
            "adapter_export/__init__.py",
            "adapter_export/errors.py",
            "adapter_export/low/make.py",
            "adapter_export/low/scanned/kind.py",
            "adapter_export/low/style.css",
            "adapter_export/lower.py",
        }

    def test_sources_of_a_package_import_are_the_whole_package(self, root: Path) -> None:
        found = sources(root, "builds")
        assert set(found) == {root / "tests/support/builds.py", *(root / "adapter_export").rglob("*.*")}


class TestKept:
    @pytest.fixture
    def made(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """The arguments with which `_write` was called, while results are kept in a folder of this test."""
        monkeypatch.setattr(kept, "_folder", tmp_path)
        monkeypatch.setattr(kept, "_used", {})
        monkeypatch.setattr(_write, "__module__", "chromium")  # any module in `tests/support`
        monkeypatch.setattr(sys.modules[__name__], "WRITTEN", list[str]())
        return WRITTEN

    def test_results_are_kept_for_the_two_latest_keys(
        self, made: list[str], tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        one, again, other, third = (
            kept.kept(tmp_path_factory, "name", _write, text) for text in ("one", "one", "other", "third")
        )
        assert made == ["one", "other", "third"]
        assert one == again
        assert not one.exists()
        assert (other / "file").read_text() == "other"
        assert set((tmp_path / "name").iterdir()) == {other, third}

    def test_a_file_counts_by_its_contents_and_not_by_its_name(
        self, made: list[str], tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        source = tmp_path_factory.mktemp("source") / "file"
        for text in ("a", "long"):
            source.write_text(text)
            kept.kept(tmp_path_factory, "name", _write, source)
        assert len(made) == 2

    @pytest.mark.usefixtures("made")
    def test_tests_that_write_into_a_result_fail(self, tmp_path_factory: pytest.TempPathFactory) -> None:
        folder = kept.kept(tmp_path_factory, "name", _write, "text")
        kept.check_unchanged()
        (folder / "file").write_text("another text")
        with pytest.raises(pytest.fail.Exception, match="a test wrote into"):
            kept.check_unchanged()
        assert not folder.exists()


WRITTEN: list[str] = []


def _write(folder: Path, text: str | Path) -> None:
    WRITTEN.append(str(text))
    (folder / "file").write_text(str(text))
