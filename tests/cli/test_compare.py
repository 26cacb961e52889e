"""`adapter-export compare` as a user runs it."""

from __future__ import annotations

from pathlib import Path

import pytest

TEXTS = ("how many moon", "who wrote this play", "good \x1b[31m film", "dull", "fine moon", "this is bad")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "test.tsv"
    lines = [f"{text}\t{('good', 'bad')[at % 2]}" for at, text in enumerate(TEXTS)]
    path.write_text("\n".join(["sentence\tclass", *lines]) + "\n", encoding="utf-8")
    return path


def test_compare_command_reports_an_adapter_beside_its_bundle(
    cli, bundle: Path, adapters: Path, model: Path, data, tmp_path
) -> None:
    columns = ("--data", data, "--text", "sentence", "--label", "class", "--resamples", 20, "--rounds", 2)
    page = tmp_path / "page.html"
    options = (bundle, adapters / "tone", "--only", "tone", "--base", model, *columns)
    done = cli.done("compare", *options, "--report", page)
    for said in ("2 contestants (single_label) on 6 rows", "bundle/tone", "adapters/tone", "exact McNemar", "latency"):
        assert said in done.stdout
    for said in (
        "building 1 adapter of one topology",
        "not significantly different on these rows",
        f"wrote {page}",
    ):
        assert said in done.stderr
    assert page.read_text("utf-8").startswith("<!doctype html>")
    cli.refused(3, "already exists", "compare", *options, "--report", page)


def test_compare_refuses_invalid_calls_and_prints_json(cli, bundle: Path, data: Path) -> None:
    columns = ("--data", data, "--text", "sentence", "--label", "class")
    refused = cli.refused(3, "holds labels that not every contestant has", "compare", bundle, *columns)
    assert "`topic` has no `good`, `bad`" in refused.stderr
    assert "`--only tone`" in refused.stderr
    cli.refused(2, "`tone` only", "compare", bundle, "--only", "tone", *columns)
    cli.refused(2, "Missing argument", "compare", *columns)
    cli.refused(3, "does not exist", "compare", bundle, "nowhere", "--only", "tone", *columns)
