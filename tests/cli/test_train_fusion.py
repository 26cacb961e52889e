"""`train --fuse`: adapters are frozen, their fusion learns; the result builds, checks and runs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from adapter_export.cli.reporter import TerminalReporter
from adapter_export.format.adapter_files import read_adapter
from adapter_export.graph.compose import COMPOSITION
from adapter_export.graph.compose.attention import temperature_of
from adapter_export.graph.compose.members import own_tensors

QUICK = ("--epochs", "2", "--batch-size", "8", "--learning-rate", "0.01")
STEPS = 4
"""In an epoch."""

GOOD = ("good film", "the film is good", "this play is fine", "fine play")
BAD = ("bad film", "the film is bad", "this play is dull", "dull play")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    table = [
        f"{start} {text}\t{label}"
        for start in ("who", "how", "many", "the")
        for texts, label in ((GOOD, "good"), (BAD, "bad"))
        for text in texts
    ]
    path = tmp_path_factory.mktemp("data") / "train.tsv"
    path.write_text("\n".join(["text\tlabel", *table]) + "\n", encoding="utf-8")
    return path


def fuse(cli, model: Path, adapters: Path, data: Path, output: Path, *options: object) -> dict:
    return cli.json(
        "train", model, "--data", data, "--fuse", "topic,tone", *QUICK, *options, "-o", output, folder=adapters
    )


@pytest.fixture(scope="module")
def fused(cli, model: Path, adapters: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fused")
    fuse(
        cli,
        model,
        adapters,
        data,
        folder / "dynamic",
        "--fusion-temperature",
        "50",
        "--fusion-temperature-decay",
        "0.01",
    )
    fuse(cli, model, adapters, data, folder / "weighted", "--fusion", "weighted", "--weights", "topic=0.2,tone=0.8")
    return folder


def test_members_stay_bit_for_bit_and_the_fusion_learns(adapters: Path, fused: Path) -> None:
    for name in ("dynamic", "weighted"):
        adapter = read_adapter(fused / name)
        for member in ("topic", "tone"):
            own = load_file(adapters / member / "weights.safetensors")
            kept = {
                f"{site}.{member}.{rest}": f"{site}.{rest}"
                for site in adapter.placements
                for rest in ("down.weight", "down.bias", "up.weight", "up.bias")
                if f"{site}.{rest}" in own
            }
            assert kept
            assert all(np.array_equal(adapter.weights[new], own[old]) for new, old in kept.items())
    weighted = read_adapter(fused / "weighted")
    weights = [weighted.weights[name] for name in own_tensors(weighted)]
    assert all(np.abs(found - [[0.2, 0.8]]).max() > 1e-3 for found in weights)


def test_fusion_record_names_members_and_settings(adapters: Path, fused: Path) -> None:
    adapter = read_adapter(fused / "dynamic")
    record, settings = adapter.training, adapter.training["settings"]
    assert (adapter.kind, record[COMPOSITION]["type"]) == ("fusion", "adapter_fusion")
    assert [member["name"] for member in record[COMPOSITION]["members"]] == ["topic", "tone"]
    assert all(len(member["weights_sha256"]) == 64 for member in record[COMPOSITION]["members"])
    assert (settings["fusion"], settings["value_penalty"], settings["fusion_temperature_decay"]) == (
        "dynamic",
        0.01,
        0.01,
    )
    assert (record[COMPOSITION]["temperature"], settings["initial_change"] > 0.01) == (50.0, True)
    steps = record["steps"] * record["best_epoch"] // len(record["history"])
    assert sorted(map(temperature_of, adapter.graphs.values())) == [1.0, pytest.approx(50 - 0.5 * steps)]


def test_trained_fusion_builds_checks_and_runs_beside_its_members(
    cli, hf_folder: Path, model: Path, graph: Path, adapters: Path, fused: Path, tmp_path: Path
) -> None:
    listed = ",".join(map(str, [adapters / "topic", adapters / "tone", fused / "dynamic", fused / "weighted"]))
    text = ("--tokenizer", hf_folder, "--max-tokens", 80)
    cli.done("build", graph, *text, "--adapters", listed, "-o", tmp_path / "bundle")
    only = ("--only", "dynamic", "--only", "weighted")
    assert cli.json("check", tmp_path / "bundle", "--against", model, *only, "--quick")["verdict"] == "passed"
    found = cli.done("run", tmp_path / "bundle", "--adapter", "dynamic", "--text", "the film is good")
    assert "good" in found.stdout


def test_an_interrupted_run_goes_on(
    cli, model: Path, adapters: Path, data: Path, fused: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped as by Ctrl-C in the first step of its second epoch."""
    options = ("train", model, "--data", data, "--fuse", "topic,tone", *QUICK, "--fusion-temperature", "50")
    options += ("--fusion-temperature-decay", "0.01", "-o", tmp_path / "dynamic")
    step = TerminalReporter.step

    def stopped(reporter: TerminalReporter, label: str, done: int = 0, total: int | None = None) -> None:
        step(reporter, label, done, total)
        if done == STEPS + 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(TerminalReporter, "step", stopped)
        assert cli(*options, folder=adapters).returncode == 130
    assert not (tmp_path / "dynamic").exists()
    cli.refused(3, "an interrupted run with other data", *options, "--no-key", folder=adapters)
    cli.done(*options, "--resume", folder=adapters)
    one, other = (load_file(folder / "dynamic" / "weights.safetensors") for folder in (fused, tmp_path))
    assert all(np.array_equal(one[name], other[name]) for name in one)


REFUSED = {
    "this option applies only to a fusion; found `--fusion-temperature`": (2, ("--fusion-temperature", "3")),
    "must list two or more adapters": (2, ("--fuse", "topic")),
    "each with a name of its own; found topic, topic": (2, ("--fuse", "topic,topic")),
    "is not an adapter": (3, ("--fuse", "topic,missing")),
    "has no kind; found `--bottleneck`, `--kind`": (
        2,
        ("--fuse", "topic,tone", "--kind", "houlsby", "--bottleneck", "4"),
    ),
    "has no kind; found `--init`": (2, ("--fuse", "topic,tone", "--init", "normal")),
    "a `static` fusion does not have this option; found `--value-penalty`": (
        2,
        ("--fuse", "topic,tone", "--fusion", "static", "--value-penalty", "1"),
    ),
    "a `weighted` fusion does not have this option; found `--no-key`": (
        2,
        ("--fuse", "topic,tone", "--fusion", "weighted", "--no-key"),
    ),
    "a `dynamic` fusion does not have this option; found `--weights`": (
        2,
        ("--fuse", "topic,tone", "--weights", "1,2"),
    ),
    "`--fusion-temperature-decay` requires a temperature": (
        2,
        ("--fuse", "topic,tone", "--fusion-temperature-decay", "0.1"),
    ),
    "`--fusion-temperature-decay` is out of range": (
        2,
        ("--fuse", "topic,tone", "--fusion-temperature", "3", "--fusion-temperature-decay", "-1"),
    ),
    "no temperature of a softmax": (2, ("--fuse", "topic,tone", "--fusion-temperature", "0")),
    "a dropout rate is a probability": (2, ("--fuse", "topic,tone", "--fusion-dropout", "1")),
    "not those of the members": (2, ("--fuse", "topic,tone", "--fusion", "weighted", "--weights", "1,nan")),
}


@pytest.mark.parametrize("words", REFUSED)
def test_train_fusion_refuses_invalid_calls(
    cli, model: Path, adapters: Path, data: Path, tmp_path: Path, words: str
) -> None:
    code, options = REFUSED[words]
    cli.refused(code, words, "train", model, "--data", data, *options, "-o", tmp_path / "f", folder=adapters)
    assert not (tmp_path / "f").exists()


def test_a_member_of_another_base_is_refused(cli, model: Path, adapters: Path, data: Path, tmp_path: Path) -> None:
    shutil.copytree(adapters / "topic", tmp_path / "other")
    document = tmp_path / "other" / "adapter_graph.json"
    content = json.loads(document.read_text(encoding="utf-8"))
    del content["checksum"]
    document.write_text(json.dumps({**content, "name": "other", "base": {"fingerprint": "sha256:01"}}))
    options = ("--data", data, "-o", tmp_path / "f", "--fuse", f"{adapters / 'tone'},{tmp_path / 'other'}")
    found = cli.refused(3, "adapter `other` was trained on another base", "train", model, *options)
    assert "--allow" not in found.stderr
