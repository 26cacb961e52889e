"""Wrong calls: arguments, outputs and tables are checked before anything heavy is imported, so before a model opens."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("torch", "transformers", "accelerate", "onnx", "onnx_ir", "onnxscript", "sklearn")

RUNNER = """
import json, sys
from click.testing import CliRunner

heavy, calls = json.load(sys.stdin)

class Refusing:
    def find_spec(self, name, path=None, target=None):
        if name in heavy:
            raise RuntimeError(f"{name} is imported")

sys.meta_path.insert(0, Refusing())
from adapter_export.cli.main import main

for words in calls:
    found = CliRunner().invoke(main, words)
    print(json.dumps([found.exit_code, found.stderr]))
"""
"""Run command lines in a process that cannot import heavy modules; one line each of exit code and stderr."""

TABLES = {
    "column.csv": (b"words,label\na,x\nb,y\n", "column.csv, line 1: there is no column `text`; found `words`, `label`"),
    "encoding.csv": ("text,label\nдобрый день,x\n".encode("cp1251"), "encoding.csv, line 2: is not UTF-8"),
    "faults.csv": (b"text,label\na,a\nb\nc,a,b\nd,b\n", "lines 3, 4: a row has a wrong number of cells"),
    "missing.csv": (None, "missing.csv: does not exist"),
}
"""Tables that no command can use, with the words that name the fault."""

ONE_ROW = b"text,label\na,a\nb,a\nc,b\n"

Call = tuple[list[object], int, str]
"""A command line, its exit code, and words of its error."""


def run_all(calls: list[Call], folder: Path, *heavy: str) -> list[tuple[int, str]]:
    words = json.dumps([[*HEAVY, *heavy], [[str(word) for word in line] for line, _, _ in calls]])
    command = [sys.executable, "-c", RUNNER]
    ended = subprocess.run(command, cwd=folder, input=words, capture_output=True, text=True, check=True)
    return [(code, said) for code, said in map(json.loads, ended.stdout.splitlines())]


def check(calls: list[Call], found: list[tuple[int, str]]) -> None:
    wrong = [
        f"{' '.join(map(str, line))}: {code} {said}"
        for (line, expected, words), (code, said) in zip(calls, found, strict=True)
        if code != expected or words not in said
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.extended
def test_no_wrong_call_opens_a_model(model: Path, adapters: Path, bundle: Path, tmp_path: Path) -> None:
    topic = adapters / "topic"
    for name, (content, _) in TABLES.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
    (tmp_path / "one.csv").write_bytes(ONE_ROW)
    (tmp_path / "good.csv").write_bytes(ONE_ROW + b"d,b\n")
    for name in ("there.svg", "there.pt", "there.html", "there.npz", "folder/file"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("kept")
    calls: list[Call] = []
    for data, (_, words) in TABLES.items():
        calls += [
            (line, 3, words)
            for line in (
                ["train", model, "--data", data, "-o", "new"],
                ["train", model, "--data", "good.csv", "--validation-data", data, "-o", "new"],
                ["sweep", model, "--data", data, "-o", "new"],
                ["distil", model, "--data", data, "-o", "new"],
                ["distil", model, "--adapter", topic, "--data", data, "-o", "new"],
                ["drop", topic, "--base", model, "--data", data],
                ["lint", topic, "--base", model, "--data", data],
                ["evaluate", bundle, "--adapter", "topic", "--data", data],
                ["compare", bundle, "--only", "topic", "--data", data],
                ["check", bundle, "--against", model, "--data", data, "--text", "text"],
                ["run", bundle, "--adapter", "topic", "--data", data],
                ["run-many", bundle, data, "--adapter", "topic", "-o", "new"],
            )
        ]
    one_row = "a class has one row only"
    calls += [
        (["train", model, "--data", "one.csv", "-o", "new"], 3, f"one.csv, line 4: {one_row}"),
        (["sweep", model, "--data", "one.csv", "-o", "new"], 3, one_row),
        (["distil", model, "--data", "one.csv", "-o", "new"], 3, one_row),
        (["evaluate", bundle, "--adapter", "tone", "--data", "one.csv"], 3, "labels that the adapter does not have"),
        (["train", model, "--task", "causal_lm", "--text", "words", "--data", "one.csv", "-o", "new"], 3, "`words`"),
    ]
    good, exists = ["--data", "good.csv"], "already exists"
    calls += [
        (["train", model, *good, "-o", "folder"], 3, exists),
        (["sweep", model, *good, "-o", "folder"], 3, "contains something other than a sweep"),
        (["sweep", model, *good, "-o", "new", "--plot", "there.svg"], 3, exists),
        (["sweep", model, *good, "-o", "new", "--bundle", "folder"], 3, exists),
        (["distil", model, *good, "-o", "folder"], 3, exists),
        (["drop", topic, "--base", model, *good, "--layers", 1, "-o", "folder"], 3, exists),
        (["drop", topic, "--base", model, *good, "--plot", "there.svg"], 3, exists),
        (["plan", model, "--plot", "there.svg"], 3, exists),
        (["evaluate", bundle, *good, "--report", "there.html"], 3, exists),
        (["compare", bundle, *good, "--report", "there.html"], 3, exists),
        (["check", bundle, "--report", "there.html"], 3, exists),
        (["check", bundle, "--against", model, "--repro", "folder"], 3, exists),
        (["run", bundle, "--text", "a", "--out", "there.npz"], 3, exists),
        (["run-many", bundle, "good.csv", "--adapter", "topic", "-o", "folder"], 3, exists),
        (["inspect", bundle, "--svg", "there.svg"], 3, exists),
        (["build", model, "--adapters", topic, "-o", "folder"], 3, exists),
        (["capture", "folder", "-o", "there.pt"], 3, exists),
        (["sites", model, "--write-site-map", "there.svg"], 3, exists),
        (["merge", model, "--adapter", topic, "-o", "there.pt"], 3, exists),
        (["compose", "stack", topic, topic, "-o", "folder"], 3, exists),
        (["pack", "there.npz", "--base", model, "--kind", "lora", "-o", "folder"], 3, exists),
        (["import", "peft", "folder", "--base", model, "-o", "folder"], 3, exists),
        (["import", "adapterhub", "folder", "--base", model, "-o", "folder"], 3, exists),
        (["ship", bundle, "--layout", "docker", "-o", "folder"], 3, exists),
        (["pull", "hf://owner/name", "-o", "folder"], 3, exists),
    ]
    calls += [
        (["train", model, *good, "-o", "new", "--kind", "nothing"], 2, "unknown kind"),
        (["train", model, *good, "-o", "new", "--delimiter", ";;"], 2, "is not a delimiter"),
        (["train", model, *good, "-o", "new", "--encoding", "nothing"], 2, "unknown encoding"),
        (["train", "nothing.pt", *good, "-o", "new"], 3, "nothing.pt: does not exist"),
        (["plan", model, "--kinds", "nothing"], 2, "unknown kind"),
        (["plan", model, "--plot", "chart.gif"], 2, "unknown chart format"),
        (["build", model, "--adapters", "nothing", "-o", "new"], 3, "`nothing`: is not an adapter"),
        (["build", model, "--adapters", topic, "--variants", "nothing", "-o", "new"], 2, "unknown variants"),
        (["build", model, "--adapters", topic, "--reserve", "nothing", "-o", "new"], 2, "unknown kind"),
        (["build", "nothing.pt", "-o", "new"], 3, "nothing.pt: does not exist"),
        (["evaluate", bundle, "--adapter", "nothing", *good], 2, "unknown adapter"),
    ]
    check(calls, run_all(calls, tmp_path))
    of_bundles = [
        call
        for call in calls
        if call[0][0] in ("run", "evaluate") and call[2] in [words for _, words in TABLES.values()]
    ]
    assert len(of_bundles) == 2 * len(TABLES)
    check(of_bundles, run_all(of_bundles, tmp_path, "onnxruntime"))
    assert not (tmp_path / "new").exists()
    assert all((tmp_path / name).read_text() == "kept" for name in ("there.svg", "there.npz", "folder/file"))


@pytest.mark.extended
def test_import_guard_detects_the_imports_of_a_right_call(model: Path, tmp_path: Path) -> None:
    """A process that refused nothing would show nothing."""
    (tmp_path / "good.csv").write_bytes(ONE_ROW + b"d,b\n")
    ((code, said),) = run_all([(["train", model, "--data", "good.csv", "-o", "new"], 5, "")], tmp_path)
    assert (code, "torch is imported" in said) == (5, True)
