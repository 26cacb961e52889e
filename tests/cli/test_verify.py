"""`adapter-export verify` as a user runs it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from adapter_export.format.manifest_json import list_files, read_manifest, write_manifest


@pytest.fixture
def copy(bundle: Path, tmp_path: Path) -> Path:
    return shutil.copytree(bundle, tmp_path / "bundle")


def test_verify_passes_a_complete_bundle(cli, bundle: Path) -> None:
    found = cli.json("verify", bundle)
    assert found["verdict"] == "passed"
    outputs = [one for each in found["findings"] for one in each["measurements"]]
    keys = {(one["variant"], one["adapter"], one["mixed"]) for one in outputs}
    alone = {(form, name, False) for form in ("slots", "inputs", "bank") for name in (None, "topic", "tone")}
    assert keys == alone | {("bank", name, True) for name in (None, "topic", "tone")}
    assert all(one["ratio"] < 1 and one["elements"] and not one["faults"] for one in outputs)
    done = cli.done("verify", bundle)
    assert "verify  100 %  in" in done.stderr
    assert all(one["status"] != "unverified" for one in found["findings"])
    assert done.stdout.splitlines()[-1] == found["summary"] == "passed (golden vectors only)"
    assert "in mixed batches" in done.stdout
    assert "Coverage" not in done.stdout
    assert "`--verbose` shows every claim" in done.stdout
    whole = cli.done("verify", bundle, "--verbose").stdout
    assert {"Outputs", "Claims", "Coverage"} <= set(whole.splitlines())
    assert whole.splitlines()[-1] == done.stdout.splitlines()[-1]


def test_a_result_that_is_off_is_exit_code_1(cli, copy: Path) -> None:
    path = copy / "golden/topic.safetensors"
    tensors = load_file(path)
    name = next(name for name in tensors if name.endswith("output.logits"))
    tensors[name] = tensors[name] + np.float32(0.5)
    save_file(tensors, path)
    write_manifest(replace(read_manifest(copy), files=list_files(copy)), copy)
    done = cli("verify", copy)
    assert done.returncode == 1
    assert done.stdout.rstrip().endswith("failed")
    assert "FAIL topic, " in done.stdout
    assert json.loads(cli("verify", copy, "--json").stdout)["verdict"] == "failed"


def test_damage_is_exit_code_3_and_names_the_file(cli, copy: Path) -> None:
    (copy / "notes.txt").write_text("mine")
    cli.refused(3, "does not list; found `notes.txt`", "verify", copy)
    (copy / "notes.txt").unlink()
    with (copy / "base.bin").open("r+b") as file:
        file.write(b"\xff")
    done = cli.refused(3, "base.bin: has been changed or damaged", "verify", copy, "--json")
    assert json.loads(done.stdout)["error"] == "HashError"
    cli.refused(3, "is not a bundle", "verify", copy / "adapters")


@pytest.mark.extended
def test_verify_runs_without_torch(bundle: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        f"from adapter_export.cli.main import main; main(['verify', {str(bundle)!r}])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stderr


def test_expect_option_accepts_only_the_expected_bundle(cli, bundle: Path) -> None:
    digest = cli.json("inspect", bundle)["digest"]
    assert digest in cli.done("inspect", bundle).stdout
    cli.done("verify", bundle, "--expect", digest)
    cli.refused(3, "does not match the expected bundle", "verify", bundle, "--expect", "0" * 64)
