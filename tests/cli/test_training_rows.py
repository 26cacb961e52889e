"""`evaluate` and `compare` on rows that an adapter was trained on, and on answers that are all one class."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

STARTS, TEXTS = ("who", "how", "many", "far", "wrote"), ("good film", "fine play", "the moon", "dull", "bad", "is this")
OPTIONS = ("--adapter", "tickets", "--resamples", 0)

pytestmark = pytest.mark.extended  # it trains and builds; `tests/analysis/test_seen_rows.py` is quick


def rows() -> list[tuple[str, str]]:
    """30 texts, of which 20 are `good`."""
    pairs = itertools.product(STARTS, TEXTS)
    return [(f"{start} {text}", "bad" if at % 3 == 0 else "good") for at, (start, text) in enumerate(pairs)]


def new_rows() -> list[tuple[str, str]]:
    """30 texts that `rows` lacks."""
    return [(f"{text} {text}", label) for text, label in rows()]


def write(path: Path, table: list[tuple[str, str]]) -> Path:
    path.write_text("".join(f"{text}\t{label}\n" for text, label in [("text", "label"), *table]), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def folder(cli, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`train.tsv`, of which a third validates, the adapter `tickets` that learnt from it, and its `bundle`."""
    folder = tmp_path_factory.mktemp("tickets")
    data = write(folder / "train.tsv", rows())
    words = ("--validation", "0.33", "--epochs", 1, "--bottleneck", 4, "-o", folder / "tickets")
    cli.done("train", model, "--data", data, *words)
    listed = f"{folder / 'tickets'},again={folder / 'tickets'}"
    cli.done("build", model, "--adapters", listed, "--variants", "slots", "-o", folder / "bundle")
    return folder


def test_a_gate_on_the_training_file_fails(cli, folder: Path, tmp_path: Path) -> None:
    call = ("evaluate", folder / "bundle", *OPTIONS, "--data", folder / "train.tsv", "--gate", "accuracy=0")
    done = cli.refused(6, "a gate on training rows shows nothing about new ones", *call, "--report", tmp_path / "page")
    said = "these are training rows of `tickets`: this is the file that it was trained on (20 of 30 rows)"
    assert said in done.stderr
    for words in ("these are training rows of <code>tickets</code>", "a gate on training rows", ">failed<"):
        assert words in (tmp_path / "page").read_text("utf-8")
    found = json.loads(cli(*call, "--json").stdout)
    assert found["passed"] is False
    assert found["seen"] == {"file": "training", "rows": 30, "training": 20, "validation": 10, "estimated": False}
    assert any(note.startswith("these are training rows of `tickets`") for note in found["notes"])
    allowed = cli.done(*call, "--allow-training-rows")
    assert said in allowed.stderr
    cli.done(*call[:-2])  # without a gate


def test_single_training_rows_are_counted_in_another_file(cli, folder: Path, tmp_path: Path) -> None:
    """Case, spaces and labels may differ; one row in thirty is no reason to fail a gate."""
    known = [(f"  {text.upper()} ", "good") for text, _ in rows()]
    for count, code in ((1, 0), (30, 6)):
        data = write(tmp_path / "test.tsv", known[:count] + new_rows()[count:])
        call = ("evaluate", folder / "bundle", *OPTIONS, "--data", data, "--gate", "accuracy=0", "--json")
        done = cli(*call)
        document = json.loads(done.stdout)
        seen = document["seen"]
        assert seen["file"] is None
        assert seen["training"] + seen["validation"] == count
        said = any("rows are training rows of `tickets`" in note for note in document["notes"])
        assert (done.returncode, said) == (code, seen["training"] > 0)
    fresh = cli.json("evaluate", folder / "bundle", *OPTIONS, "--data", write(tmp_path / "new.tsv", new_rows()))
    assert (fresh["seen"]["training"], fresh["seen"]["validation"]) == (0, 0)


def test_compare_names_the_contestants_that_learnt_the_rows(cli, folder: Path, bundle: Path, tmp_path: Path) -> None:
    call = ("compare", folder / "bundle", bundle, "--only", "tickets", "--only", "tone", "--rounds", 0)
    done = cli.done(*call, "--data", folder / "train.tsv", "--report", tmp_path / "page", "--resamples", 0)
    said = "these are training rows of `tickets`"
    assert f"`tickets`: {said}" in done.stderr
    assert "these are training rows of <code>tickets</code>" in (tmp_path / "page").read_text("utf-8")
    found = cli.json(*call, "--data", folder / "train.tsv", "--resamples", 0)
    seen = {one["name"]: one["seen"] for one in found["contestants"]}
    assert seen["tone"] is None
    assert (seen["tickets"]["file"], seen["tickets"]["training"]) == ("training", 20)


def test_digests_can_be_left_out(cli, model: Path, folder: Path, tmp_path: Path) -> None:
    record = json.loads((folder / "tickets" / "adapter_graph.json").read_text("utf-8"))["training"]["data"]
    assert record["training"]["row_digests"]["rows"] == 20
    assert record["validation"]["row_digests"]["rows"] == 10
    words = ("--without-row-digests", "--epochs", 1, "--bottleneck", 4, "-o", tmp_path / "plain")
    made = cli.json("train", model, "--data", folder / "train.tsv", *words)
    assert "row_digests" not in json.dumps(made["data"])


def test_evaluate_reports_the_majority_and_a_collapse(cli, model: Path, tmp_path: Path) -> None:
    """Almost no learning from 200 rows, of which 160 are `good`: every answer is `good`."""
    table = [(f"{text} {end}", label) for text, label in rows() for end in TEXTS]
    table = [(text, "bad" if at % 5 == 0 else "good") for at, (text, _) in enumerate(table)]
    data, test = write(tmp_path / "train.tsv", table[:100]), write(tmp_path / "test.tsv", table[100:])
    words = ("--validation", "0.3", "--epochs", 4, "--learning-rate", "0.02", "--bottleneck", 4, "--head-layers", 1)
    made = cli.done("train", model, "--data", data, "--test-data", test, *words, "-o", tmp_path / "a")
    said = "`good` is 100.0% of the answers and 80.0% of the labels"
    assert said in made.stderr
    assert "majority: always answering `good`" in made.stdout
    row = next(line.split() for line in made.stdout.splitlines() if line.split()[:1] == ["majority"])
    assert row[1] == "0.8000"
    assert "(majority 0.800" in made.stdout
    cli.done("build", model, "--adapters", tmp_path / "a", "--variants", "slots", "-o", tmp_path / "bundle")
    call = ("evaluate", tmp_path / "bundle", "--data", test, "--resamples", 0)
    done = cli.done(*call, "--report", tmp_path / "page")
    assert said in done.stderr
    accuracy = next(line.split() for line in done.stdout.splitlines() if line.split()[:1] == ["accuracy"])
    assert accuracy == ["accuracy", "0.8000", "0.8000"] or accuracy[-1] == "0.8000"
    assert "majority" in (tmp_path / "page").read_text("utf-8")
    found = cli.json(*call)
    assert found["majority"]["label"] == "good"
    assert found["majority"]["scores"]["accuracy"] == pytest.approx(0.8)
