"""`adapter-export evaluate` as a user runs it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

WORDS = ("how many moon", "who wrote this play", "good film", "dull", "fine moon", "this is bad", "how far is the moon")
OTHER = {"good": "bad", "bad": "good"}


@pytest.fixture(scope="module")
def answers(cli, bundle: Path) -> list[dict[str, str]]:
    """Texts with what the bundle's adapter `tone` says of them."""
    texts = [word for text in WORDS for word in ("--text", text)]
    found = cli.json("run", bundle, "--adapter", "tone", *texts)["rows"]
    return [{"text": one["text"], "label": one["label"], "words": str(len(one["text"].split()))} for one in found]


def table(path: Path, rows: list[dict[str, str]]) -> Path:
    lines = ["\t".join(rows[0]), *("\t".join(row.values()) for row in rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def rotated(rows: list[dict[str, str]], count: int) -> list[dict[str, str]]:
    """The rows, the labels of the first `count` of them turned round."""
    return [{**row, "label": OTHER[row["label"]] if at < count else row["label"]} for at, row in enumerate(rows)]


def test_evaluate_shows_scores_with_their_intervals(cli, bundle: Path, answers, tmp_path: Path) -> None:
    data = table(tmp_path / "test.tsv", rotated(answers, 1))
    done = cli.done("evaluate", bundle, "--adapter", "tone", "--data", data, "--slices", "words", "--resamples", 50)
    lines = [line.split() for line in done.stdout.splitlines()]
    accuracy = next(line for line in lines if line[:1] == ["accuracy"])
    assert accuracy[1] == f"{6 / 7:.4f}"
    assert "to" in accuracy
    for said in ("confusion", "expected calibration error", "slices by `words`", "macro-F1"):
        assert said in done.stdout
    assert "percentile bootstrap over rows, 50 draws, seed 0" in done.stderr
    assert "evaluate  7/7  in" in done.stderr
    assert "answering with `tone`" in done.stderr


def test_a_gate_decides_the_exit_code(cli, bundle: Path, answers, tmp_path: Path) -> None:
    options = ("evaluate", bundle, "--adapter", "tone", "--gate", "accuracy=0.9", "--resamples", 20, "--data")
    cli.done(*options, table(tmp_path / "good.tsv", answers))
    missed = cli.refused(1, "`accuracy` misses its gate", *options, table(tmp_path / "bad.tsv", rotated(answers, 7)))
    assert "found 0.0000; expected at least 0.9" in missed.stderr
    document = json.loads(cli(*options, tmp_path / "bad.tsv", "--json").stdout)
    assert document["passed"] is False
    assert document["scores"]["accuracy"]["value"] == 0.0


@pytest.mark.parametrize(
    ("gates", "words"),
    [
        (["accuracy"], "is not a gate"),
        (["accuracy=high"], "is not a gate"),
        (["accuracy=92"], "the metric cannot have this value"),
        (["precision=0.9"], "is not a metric of this task"),
        (["accuracy=0.9", "accuracy=0.8"], "a metric has two gates"),
    ],
)
def test_a_gate_that_means_nothing_is_refused(
    cli, bundle: Path, answers, tmp_path: Path, gates: list[str], words: str
) -> None:
    data = table(tmp_path / "test.tsv", answers)
    given = [word for gate in gates for word in ("--gate", gate)]
    cli.refused(2, words, "evaluate", bundle, "--adapter", "tone", "--data", data, *given)


def test_evaluate_compares_with_the_model_and_writes_a_page(
    cli, bundle: Path, model: Path, answers, tmp_path: Path
) -> None:
    data, page = table(tmp_path / "test.tsv", answers), tmp_path / "page.html"
    options = ("evaluate", bundle, "--adapter", "tone", "--data", data, "--resamples", 20)
    done = cli.done(*options, "--against", model, "--report", page)
    assert "reference" in done.stdout
    assert f"wrote {page}" in done.stderr
    assert page.read_text("utf-8").startswith("<!doctype html>")
    cli.refused(3, "already exists", *options, "--report", page)
    document = cli.json(*options, "--against", model, "--force", "--report", page)
    assert document["versus"]["differing"] == []


def test_check_names_an_adapter_that_changes_nothing(cli, graph: Path, plain_tensors, tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    for name, factor in (("alive", 1.0), ("zeros", 0.0)):
        tensors = plain_tensors("pfeiffer", classes=2)
        tensors |= {key: tensor * 0 for key, tensor in tensors.items() if ".up." in key and not factor}
        save_file(tensors, tmp_path / f"{name}.safetensors")
        packed = ("--kind", "pfeiffer", "--activation", "relu", "--labels", "a,b", "--base", graph)
        cli.done("pack", tmp_path / f"{name}.safetensors", *packed, "-o", tmp_path / name)
    listed = f"{tmp_path / 'alive'},{tmp_path / 'zeros'}"
    said = "adapter `zeros` has no effect: at each of its sites its result equals the replaced value"
    built = cli.done("build", graph, "--adapters", listed, "-o", tmp_path / "bundle")
    assert said in built.stderr
    checked = cli.done("check", tmp_path / "bundle")
    assert f"\n{said}\n" in checked.stdout
    assert "effect: adapters change the base's outputs by 0.00% (`zeros`) to " in checked.stdout
    cli.done("verify", tmp_path / "bundle")
