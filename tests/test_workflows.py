"""CI and the other files that GitHub reads: valid, linted, and naming only what exists."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema.validators import validator_for
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from toolchain import skip_or_fail

ROOT = Path(__file__).parents[1]
GITHUB = ROOT / ".github"
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
SCHEMAS = {
    "github-workflows": WORKFLOWS,
    "dependabot": [GITHUB / "dependabot.yml"],
    "github-issue-forms": [GITHUB / "ISSUE_TEMPLATE" / name for name in ("bug.yml", "feature.yml")],
    "github-issue-config": [GITHUB / "ISSUE_TEMPLATE" / "config.yml"],
    "citation-file-format": [ROOT / "CITATION.cff"],
}
PROGRAMS = {"make", "git", "gh", "apt-get", "python", ".ci/run", ".venv/bin/python"}


def _program(name: str) -> Path:
    """A program of the extra `test`, which is beside this Python."""
    path = Path(sys.prefix) / "bin" / name
    if not path.is_file():
        skip_or_fail(f"`{name}` is missing: run `make setup`")
    return path


def _run(name: str, *words: str | Path, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run([_program(name), *words], cwd=folder, capture_output=True, text=True, check=False)


def _jobs() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every job, with the name of its workflow."""
    for path in WORKFLOWS:
        for name, job in yaml.safe_load(path.read_text("utf-8"))["jobs"].items():
            yield f"{path.stem}:{name}", job


def _commands() -> Iterator[tuple[str, list[str]]]:
    """List the command lines of a job, with `$TARGET` replaced by the values of the matrix."""
    for name, job in _jobs():
        targets = job.get("strategy", {}).get("matrix", {}).get("target", [""])
        for step in job["steps"]:
            for line in step.get("run", "").splitlines():
                if not re.match(r"\s*(if|else|fi)\b|\s*number=", line):
                    for target in targets if "$TARGET" in line else [""]:
                        yield name, shlex.split(line.replace("$TARGET", target))


def _direct(*extras: str) -> list[Requirement]:
    """The packages that the project and some extras name."""
    lines = [*PROJECT["dependencies"], *(line for extra in extras for line in PROJECT["optional-dependencies"][extra])]
    return [Requirement(line) for line in lines if not line.startswith("adapter-export")]


def _pins(name: str) -> dict[str, str]:
    lines = (GITHUB / "constraints" / name).read_text("utf-8").splitlines()
    pairs = [line.partition(" #")[0].split("==") for line in lines if not line.startswith("#")]
    return {canonicalize_name(package): version for package, version in pairs}


@pytest.mark.parametrize("schema", SCHEMAS)
def test_files_match_the_public_schemas(schema: str) -> None:
    """The schemas are those of SchemaStore, of which check-jsonschema has copies."""
    if importlib.util.find_spec("check_jsonschema") is None:
        skip_or_fail("`check-jsonschema` is missing: run `make setup`")
    rules = json.loads((files("check_jsonschema") / f"builtin_schemas/vendor/{schema}.json").read_text("utf-8"))
    validator = validator_for(rules)(rules)
    for path in SCHEMAS[schema]:
        document = yaml.safe_load(path.read_text("utf-8"))
        document = {"on" if key is True else key: value for key, value in document.items()}  # `on` is true in YAML 1.1
        assert [error.message for error in validator.iter_errors(document)] == [], path
        assert not validator.is_valid(
            {**document, "on": 1, "updates": 1, "body": 1, "blank_issues_enabled": 1, "authors": 1}
        )


def test_every_issue_template_is_checked() -> None:
    assert sorted(path for paths in SCHEMAS.values() for path in paths if "ISSUE" in str(path)) == sorted(
        (GITHUB / "ISSUE_TEMPLATE").iterdir()
    )


@pytest.mark.starts_program
@pytest.mark.parametrize(
    ("program", "words", "right", "wrong", "found"),
    [
        ("actionlint", ["-shellcheck", "{bin}/shellcheck"], "github.ref", "github.reff", "reff"),
        ("actionlint", ["-shellcheck", "{bin}/shellcheck"], 'comment "$number"', "comment $number", "SC2086"),
        ("zizmor", ["--offline", "--pedantic"], 'make "$TARGET"', "make ${{ matrix.target }}", "template-injection"),
        ("zizmor", ["--offline", "--pedantic"], r"@[0-9a-f]{40} # ", "@", "unpinned-uses"),
    ],
)
def test_linters_accept_the_workflows_and_find_a_planted_fault(
    tmp_path: Path, program: str, words: list[str], right: str, wrong: str, found: str
) -> None:
    _program("shellcheck")
    words = [word.format(bin=Path(sys.prefix) / "bin") for word in words]
    done = _run(program, *words, *WORKFLOWS)
    assert done.returncode == 0, done.stdout + done.stderr
    faulty = shutil.copytree(GITHUB, tmp_path / ".github")
    for path in (faulty / "workflows").iterdir():
        path.write_text(re.sub(right if "[" in right else re.escape(right), wrong, path.read_text("utf-8")), "utf-8")
    done = _run(program, *words, *sorted((faulty / "workflows").iterdir()), folder=tmp_path)
    assert done.returncode != 0
    assert found in done.stdout + done.stderr


def test_jobs_have_few_rights_and_an_end() -> None:
    for path in WORKFLOWS:
        assert yaml.safe_load(path.read_text("utf-8"))["permissions"] == {}
    writing = {
        name: sorted(right for right, level in job["permissions"].items() if level == "write") for name, job in _jobs()
    }
    assert {name: rights for name, rights in writing.items() if rights} == {
        "nightly:report": ["issues"],
        "release:attest": ["attestations", "id-token"],
        "release:publish": ["id-token"],
        "release:announce": ["contents"],
    }
    assert all(job["timeout-minutes"] <= 180 for _, job in _jobs())


def test_actions_have_one_version_everywhere() -> None:
    used = {line.strip() for path in WORKFLOWS for line in path.read_text("utf-8").splitlines() if "uses:" in line}
    actions = [line.split("uses: ")[1].split("@")[0] for line in used]
    assert len(actions) == len(set(actions))


def test_every_command_of_a_job_exists() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text("utf-8"), re.M))
    made = set[str]()
    for name, words in _commands():
        assert words[0] in PROGRAMS, (name, words)
        if words[0] == "make":
            made.add(words[1])
            assert words[1] in targets, (name, words)
        for word in words:
            if re.fullmatch(r"(\.?[\w-]+/)+[\w.-]+", word) and not word.startswith((".venv/", "dist/")):
                assert (ROOT / word).is_file(), (name, word)
    assert {"lint", "pytest", "lowest", "docs", "dist", "zoo", "published", "faults", "fuzz"} <= made


def test_files_that_jobs_name_exist() -> None:
    for path in WORKFLOWS:
        for name in re.findall(r"\.github/[\w./-]+|(?<=: )pyproject\.toml", path.read_text("utf-8")):
            assert (ROOT / name).is_file(), (path.name, name)


def test_python_versions_are_those_that_the_packages_promise() -> None:
    (tested,) = (job["strategy"]["matrix"]["python"] for name, job in _jobs() if name == "tests:test")
    runtime = tomllib.loads((ROOT / "packages" / "runtime" / "pyproject.toml").read_text("utf-8"))["project"]
    for project in (PROJECT, runtime):
        promised = [line.rpartition(" ")[2] for line in project["classifiers"] if " :: Python :: 3." in line]
        assert tested == promised
        assert project["requires-python"] == f">={promised[0]}"


def test_lowest_versions_are_the_lower_bounds() -> None:
    """A bound of `onnx>=1.18` is tested with a release of 1.18; only what another package rules out is newer."""
    pins = _pins("lowest.txt")
    direct = _direct("torch", "plot", "text", "chat", "image", "hf", "evaluate")
    assert pins.keys() == {canonicalize_name(one.name) for one in direct}
    newer = set()
    for one in direct:
        (bound,), pin = one.specifier, Version(pins[canonicalize_name(one.name)])
        assert bound.operator == ">="
        if pin.release[: len(Version(bound.version).release)] != Version(bound.version).release:
            newer.add(one.name)
    assert newer == {"tokenizers"}


def test_tested_versions_are_of_every_direct_dependency_and_allowed() -> None:
    pins = _pins("tested.txt")
    needed = _direct(*PROJECT["optional-dependencies"])
    assert pins.keys() == {canonicalize_name(one.name) for one in needed}
    assert all(one.specifier.contains(pins[canonicalize_name(one.name)]) for one in needed)


@pytest.mark.extended
def test_hooks_fix_committed_files(tmp_path: Path) -> None:
    """Commit a badly formatted file and a changed schema: the hooks refuse both, and put both right."""
    for name in (".pre-commit-config.yaml", "pyproject.toml"):
        shutil.copy2(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "schemas", tmp_path / "schemas")
    (tmp_path / ".venv").symlink_to(sys.prefix)
    (tmp_path / ".gitignore").write_text(".venv\n", encoding="utf-8")
    subprocess.run(["git", "init", "--quiet", tmp_path], check=True)
    subprocess.run(["git", "add", "."], cwd=tmp_path, check=True)
    module, schema = tmp_path / "new_module.py", tmp_path / "schemas" / "answer.schema.json"
    module.write_text('"""A module."""\nimport sys\nx = {  "a":1 }\n', encoding="utf-8")
    right = schema.read_text("utf-8")
    schema.write_text(right.replace("object", "array"), encoding="utf-8")
    subprocess.run(["git", "add", "."], cwd=tmp_path, check=True)
    done = _run("pre-commit", "run", folder=tmp_path)
    assert done.returncode == 1, done.stderr
    assert done.stdout.count("Failed") == 3, done.stdout
    assert module.read_text("utf-8") == '"""A module."""\n\nx = {"a": 1}\n'
    assert schema.read_text("utf-8") == right
    subprocess.run(["git", "add", "."], cwd=tmp_path, check=True)
    assert _run("pre-commit", "run", folder=tmp_path).returncode == 0


def test_actions_are_pinned_to_commits() -> None:
    used = [line for path in WORKFLOWS for line in path.read_text("utf-8").splitlines() if "uses:" in line]
    assert used
    assert [line for line in used if not re.search(r"uses: (\./|[\w./-]+@[0-9a-f]{40} # v\d)", line)] == []


def _unsafe(source: str) -> Iterator[str]:
    """Calls of a shell, of `eval` and `exec`, and imports that unpickle."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            shells = [word for word in node.keywords if word.arg == "shell" and getattr(word.value, "value", 1)]
            yield from ("shell" for _ in shells)
            called = ast.unparse(node.func)
            if called in ("eval", "exec", "os.system", "os.popen", "subprocess.getoutput"):
                yield called
        elif isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name in _UNPICKLING)
        elif isinstance(node, ast.ImportFrom) and node.module in _UNPICKLING:
            yield from (name.name for name in node.names if name.name != "PickleError")


_UNPICKLING = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("subprocess.run('a', shell=True)", ["shell"]),
        ("eval(text)", ["eval"]),
        ("import pickle", ["pickle"]),
        ("from pickle import loads", ["loads"]),
        ("model.eval(); from pickle import PickleError; run(shell=False)", []),
    ],
)
def test_unsafe_calls_are_noticed(source: str, found: list[str]) -> None:
    assert list(_unsafe(source)) == found


def test_the_package_calls_no_shell_and_evaluates_no_text() -> None:
    found = {path.name: [*_unsafe(path.read_text("utf-8"))] for path in (ROOT / "adapter_export").rglob("*.py")}
    assert {name: calls for name, calls in found.items() if calls} == {}
