"""`adapter-export check` as a user runs it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from safetensors.numpy import load_file, save_file

import adapter_export as ae
from adapter_export.format.lengths import Lengths
from adapter_export.format.manifest_json import list_files, read_manifest, write_manifest
from adapter_export.onnx_backend import onnx_runner
from schemas import validate


@pytest.fixture
def tampered(bundle: Path, tmp_path: Path) -> Path:
    """The bundle with a golden vector that is off, and right hashes."""
    copy = shutil.copytree(bundle, tmp_path / "bundle")
    path = copy / "golden/topic.safetensors"
    tensors = load_file(path)
    name = next(name for name in tensors if name.endswith("output.logits"))
    tensors[name] = tensors[name] + np.float32(0.5)
    save_file(tensors, path)
    manifest = replace(read_manifest(copy), files=list_files(copy))
    (copy / "manifest.json").unlink()
    write_manifest(manifest, copy)
    return copy


def test_bundle_passes_the_check_against_its_archive(cli, bundle: Path, model: Path) -> None:
    done = cli.done("check", bundle, "--against", model, "--verbose")
    rows = [line.split() for line in done.stdout.splitlines() if line.split()[:1] in (["base"], ["topic"], ["tone"])]
    assert {row[0] for row in rows} == {"base", "topic", "tone"}
    padding = [row for row in rows if "padding" in row]
    assert {row[0] for row in padding} == {"base", "topic", "tone"}
    assert all(len(row) == (10 if row in padding else 9) and row[-1] == "pass" for row in rows)
    heading = next(line for line in done.stdout.splitlines() if line.split()[:2] == ["adapter", "case"])
    assert heading.split("  ")[-1].strip() == "verdict"
    assert "against torch" in done.stdout
    assert " shapes" in done.stdout
    assert "budget of" in done.stdout
    last = done.stdout.splitlines()[-1]
    assert re.fullmatch(r"passed( \(\d+ of \d+ unverified\))?", last)
    assert "compared" in done.stdout


def test_a_check_of_a_large_base_estimates_its_time(bundle: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sessions are opened one at a time, too, and the verdict is that of the other checks."""
    monkeypatch.setattr(onnx_runner, "PIECE_BYTES", 1024)
    part: Any = {"only": ["topic"], "variants": ["slots"], "cases": ["batch1_sequence1"]}
    with pytest.warns(UserWarning, match=r"about \d+ minutes?, as the base is large; .*`variants`.* choose parts"):
        report = ae.check(bundle, against=model, **part)
    assert report.passed
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ae.check(bundle, **part)  # without a model it takes seconds


def test_bundle_passes_the_check_against_its_folder(cli, bundle: Path, hf_folder: Path) -> None:
    document = cli.json("check", bundle, "--against", hf_folder, "--only", "topic", "--only", "base")
    validate(document, "check-report")
    assert (document["verdict"], document["scope"]) == ("passed", "part")
    assert document["summary"].startswith("passed (partial, ")
    assert document["against"] == str(hf_folder)
    assert document["reference"].startswith("torch")
    outputs = [one for each in document["findings"] for one in each["measurements"] if one["kind"] == "output"]
    cases = {result["case"] for result in outputs if result["against"] == "reference"}
    assert "batch1_sequence80" in cases, "the edge of its lengths"
    found = [(each["check"], each["subject"], each["detail"]) for each in document["findings"]]
    assert {subject for name, subject, _ in found if name == "live model"} == cases
    assert ("lengths", "sequence", "1 to 80: rejects 81") in found
    assert ("lengths of the base", "sequence", "the bundle accepts 1 to 80, the base 1 to 80") in found
    assert {result["against"] for result in outputs} == {"reference", "golden"}
    assert {result["adapter"] for result in outputs} == {None, "topic"}
    assert document["coverage"]["compared"] == document["coverage"]["planned"]
    assert {result["level"] for result in outputs} == {"none", "basic", "all"}


def test_a_bundle_that_takes_more_than_its_base_fails(
    cli, bundle: Path, model: Path, hf_folder: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(bundle, tmp_path / "bundle")
    manifest = read_manifest(copy)
    (copy / "manifest.json").unlink()
    write_manifest(replace(manifest, lengths={"sequence": Lengths(1, 81)}), copy)
    few = ("--only", "base", "--case", "batch1_sequence81")
    cli.refused(4, "the model accepts none of these cases", "check", copy, "--against", model, *few)
    done = cli("check", copy, "--against", hf_folder, *few, "--case", "batch3_sequence7", "--json")
    assert done.returncode == 1, done.stderr
    document = json.loads(done.stdout)
    failed = {
        (one["check"], one["subject"]): one["detail"] for one in document["findings"] if one["status"] == "failed"
    }
    assert failed["lengths of the base", "sequence"] == "the bundle accepts 1 to 81, the base 1 to 80"
    assert failed["live model", "batch1_sequence81"].startswith("batch 1, sequence 81: ")


def test_bundle_of_an_onnx_base_passes_the_check(cli, graph: Path, adapters: Path, tmp_path: Path) -> None:
    options = ("--max-tokens", 24, "-o", tmp_path / "bundle")  # more than the base's 24 positions cannot be computed
    cli.done("build", graph, "--adapters", adapters / "topic", *options)
    against = ("--against", graph, "--adapters", adapters / "topic", "--only", "topic")
    document = cli.json("check", tmp_path / "bundle", *against, "--quick", "--report", tmp_path / "page.html")
    assert document["verdict"] == "passed"
    called = " ".join(map(str, ("adapter-export check", tmp_path / "bundle", *against, "--quick")))
    assert called in (tmp_path / "page.html").read_text("utf-8"), "the page says what was called"
    assert "numpy" in document["reference"]


@pytest.mark.extended
def test_check_without_a_model_runs_without_torch(bundle: Path) -> None:
    code = """
import sys
for name in ("torch", "transformers", "onnxscript"):
    sys.modules[name] = None  # importing it fails
from adapter_export.cli.main import main
main(["check", sys.argv[1]])
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(bundle)],
        capture_output=True,
        text=True,
        encoding="utf-8",
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "against the golden vectors" in done.stdout


def test_a_mismatch_ends_with_1_and_says_where(cli, tampered: Path) -> None:
    done = cli("check", tampered)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    start = done.stdout.index("FAIL topic, ")
    block = done.stdout[start:].splitlines()
    assert "logits[" in block[0]
    assert any("found" in line and "expected" in line for line in block[1:4])
    assert any(line.startswith("  fails at none, basic, all") for line in block)
    assert any(line.startswith("  culprit: not at a site") for line in block)
    (repeat,) = [line for line in block if line.startswith("  reproduce: ")]
    assert "--only topic --case" in repeat
    assert block.index(repeat) < 8
    assert block[-1] == "failed"


def test_command_of_a_failure_reproduces_the_failure(cli, tampered: Path) -> None:
    done = cli("check", tampered, "--json")
    assert done.returncode == 1
    document = json.loads(done.stdout)
    validate(document, "check-report")
    (failure,) = document["failures"]
    again = cli(*failure["command"].split()[1:], "--json")
    assert again.returncode == 1
    assert json.loads(again.stdout)["failures"] == [failure]


def test_another_model_is_refused(cli, bundle: Path, graph: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(graph.parent, tmp_path / "copy")  # the weights of `graph` may have bundles' names, too
    other = onnx.load(copy / graph.name)
    kept = [entry for entry in other.metadata_props if not entry.key.endswith("base_fingerprint")]
    del other.metadata_props[:]
    other.metadata_props.extend(kept)
    onnx.save(other, tmp_path / "another.onnx")
    cli.refused(
        3, "does not match the base this bundle was built from", "check", bundle, "--against", tmp_path / "another.onnx"
    )


def test_a_changed_file_is_refused(cli, bundle: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(bundle, tmp_path / "bundle")
    path = copy / "adapters/topic.onnx_adapter"
    data = bytearray(path.read_bytes())
    data[-20] ^= 255
    path.write_bytes(data)
    cli.refused(3, "has been changed or damaged", "check", copy)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--only", "nobody"), 2, "unknown adapter"),
        (("--case", "batch7_tokens7"), 2, "unknown case"),
        (("--against", "nothing.pt"), 3, "nothing.pt"),
    ],
)
def test_unknown_adapters_and_missing_files_are_refused(
    cli, bundle: Path, arguments: tuple[str, ...], code: int, words: str
) -> None:
    cli.refused(code, words, "check", bundle, *arguments)


def test_a_folder_that_is_no_bundle_is_refused(cli, tmp_path: Path) -> None:
    cli.refused(3, "manifest.json", "check", tmp_path)
