"""Several processes that train together give what one gives; one that is killed goes on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shared_training
from tiers import extended

import adapter_export as ae
from adapter_export.format.adapter_files import read_adapter

WORDS = {"good": ("good", "fine"), "bad": ("bad", "dull"), "plain": ("moon", "play")}
OPTIONS = ("--epochs", "2", "--batch-size", "5", "--bottleneck", "4", "--learning-rate", "0.01", "--device", "cpu")
CALLS = {
    "labels": ("--class-weights", "good=2,bad=0.5", "--gradient-accumulation", "2"),
    "vectors": (
        "--task",
        "embedding",
    ),
}
"""The loss of `embedding` compares the rows of both processes."""
KILLED = ("--epochs", "12", "--patience", "12", "--batch-size", "5", "--bottleneck", "4", "--dropout", "0.2")
DISTIL = ("--layers", "1", "--epochs", "1", "--batch-size", "5", "--learning-rate", "0.01", "--device", "cpu", "--json")


def table(path: Path, more: int) -> Path:
    rows = [
        f"{start} {word} {end}\t{label}"
        for label, words in WORDS.items()
        for word in words
        for start in ("who", "how", "many", "the film is")
        for end in ("", "film")
    ]
    path.write_text("\n".join(["text\tlabel", *rows, *("who who\tbad",) * more]) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
@extended
def together(model: Path, adapters: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder where two processes have trained, 48 rows in batches of 5, which they share as 3 and 2 or 1 and 0."""
    folder = tmp_path_factory.mktemp("together")
    data = [table(folder / f"{rank}.tsv", rank) for rank in (0, 1)]
    known = [line for line in data[0].read_text(encoding="utf-8").splitlines() if not line.endswith("plain")]
    (folder / "tone.tsv").write_text("\n".join(known), encoding="utf-8")
    calls = {
        name: ["train", str(model), "--data", str(data[0]), *OPTIONS, *more, "--json", "-o", str(folder / name)]
        for name, more in CALLS.items()
    }
    calls["student"] = [*distil(model, adapters, folder), "-o", str(folder / "student")]
    other = str(folder / "{rank}.tsv")
    calls["refused"] = ["train", str(model), "--data", other, *OPTIONS, "-o", str(folder / "refused")]
    killed = {"killed": ["train", str(model), "--data", str(data[0]), *KILLED, "-o", str(folder / "killed")]}
    command = [sys.executable, shared_training.__file__, json.dumps(calls), json.dumps(killed), str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    found = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=200)
    assert found.returncode == 0, found.stderr
    return folder


def distil(model: Path, adapters: Path, folder: Path) -> list[str]:
    return ["distil", str(model), "--adapter", str(adapters / "tone"), "--data", str(folder / "tone.tsv"), *DISTIL]


def said(folder: Path, name: str, rank: int) -> dict[str, Any]:
    return dict(json.loads((folder / f"{name}.{rank}.json").read_text(encoding="utf-8")))


@pytest.mark.parametrize("name", CALLS)
def test_two_processes_give_what_one_gives(cli, model: Path, together: Path, tmp_path: Path, name: str) -> None:
    one = cli.json("train", model, "--data", together / "0.tsv", *OPTIONS, *CALLS[name], "-o", tmp_path / name)
    first, second = (said(together, name, rank) for rank in (0, 1))
    assert (first["exit_code"], second["exit_code"], second["stdout"], second["stderr"]) == (0, 0, "", ""), first
    two = json.loads(first["stdout"])
    for epoch, other in zip(one["history"], two["history"], strict=True):
        assert epoch["training_loss"] == pytest.approx(other["training_loss"], rel=1e-5)
        assert epoch["validation"] == pytest.approx(other["validation"], rel=1e-5)
    alone, shared = (read_adapter(folder / name).weights for folder in (tmp_path, together))
    for tensor in alone:
        np.testing.assert_allclose(shared[tensor], alone[tensor], rtol=1e-4, atol=1e-5)


def test_a_killed_run_goes_on_when_the_command_is_repeated(cli, model: Path, together: Path, tmp_path: Path) -> None:
    train = ("train", model, "--data", together / "0.tsv", *KILLED, "-o")
    assert not (together / "killed").exists()
    changed = ("--learning-rate", "0.1")
    cli.refused(3, "an interrupted run with other data", *train, together / "killed", *changed)
    found = cli.done(*train, together / "killed", "--resume")
    assert "resuming the interrupted run" in found.stderr
    assert not (together / "killed.partial").exists()
    cli.done(*train, tmp_path / "whole")
    one, other = (read_adapter(folder).weights for folder in (tmp_path / "whole", together / "killed"))
    assert all(np.array_equal(one[name], other[name]) for name in one)


def test_two_processes_distil_what_one_does(model: Path, adapters: Path, together: Path, tmp_path: Path, cli) -> None:
    one = json.loads(cli.done(*distil(model, adapters, together), "-o", tmp_path / "student").stdout)
    first, second = (said(together, "student", rank) for rank in (0, 1))
    assert (first["exit_code"], second["exit_code"], second["stdout"], second["stderr"]) == (0, 0, "", ""), first
    two = json.loads(first["stdout"])
    assert two["training"]["history"][0]["training_loss"] == pytest.approx(
        one["training"]["history"][0]["training_loss"], rel=1e-5
    )
    assert two["student"]["scores"]["accuracy"] == one["student"]["scores"]["accuracy"]
    alone, shared = (ae.open_base(folder / "student" / "model.pt").base_head for folder in (tmp_path, together))
    assert alone is not None
    assert shared is not None
    for tensor in alone.weights:
        np.testing.assert_allclose(shared.weights[tensor], alone.weights[tensor], rtol=1e-4, atol=1e-5)


def test_processes_with_other_data_refuse_each_other(together: Path) -> None:
    for rank in (0, 1):
        found = said(together, "refused", rank)
        assert found["exit_code"] == 3
        assert "process 1 of 2: the processes were not started with the same data" in found["stderr"]
        assert "found different training rows" in found["stderr"]
    assert not (together / "refused").exists()
