"""A model card states only known facts, and quoted text never becomes markup."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from adapter_export.errors import FormatError, HashError
from adapter_export.format.adapter_files import read_adapter, write_adapter
from adapter_export.graph.adapter import Adapter
from adapter_export.graph.tasks import Task
from adapter_export.plugins.hub.artifact import digest_of
from adapter_export.plugins.hub.card import Measured, measured_from_json, model_card

REFERENCE = "oci://registry.example/team/tiny:1"
TRAINING: dict[str, Any] = {
    "producer": "adapter-export 0.1.0",
    "task": "single_label",
    "data": {
        "training": {"file": "train.tsv", "sha256": "a" * 64, "rows": 3229},
        "validation": {"fraction": 0.1, "rows": 300, "of": "training"},
        "training_rows": 3229,
    },
    "test": {"loss": 0.25, "accuracy": 0.9375},
    "validation": {"loss": 0.5, "accuracy": 0.875},
}


def _card(folder: Path, kind: Any, **options: Any) -> ModelCard:
    return ModelCard(
        model_card(folder, kind, REFERENCE, **{"licence": None, "base_model": None, "measured": (), **options})
    )


def _measured(**changes: Any) -> Measured:
    found: dict[str, Any] = {
        "adapter": "narrow",
        "digest": "0" * 64,
        "source": "0" * 64,
        "task": "single_label",
        "data": "test.tsv",
        "sha256": "b" * 64,
        "rows": 500,
        "runtime": "onnxruntime 1.32.0",
        "resamples": 1000,
        "scores": {"accuracy": {"value": 0.9377, "low": 0.9229, "high": 0.9517}, "macro_f1": {"value": None}},
    }
    return measured_from_json({**found, "classes": [], **changes}, "evaluation.json")


@pytest.fixture(scope="module")
def classifier(adapter: Path) -> Adapter:
    """An adapter of two classes, with a record of its training."""
    found = read_adapter(adapter)
    assert found.head is not None
    width = found.head.widths["classes"]
    labels = tuple(f"class {number}" for number in range(width))
    return replace(found, training=TRAINING, head=replace(found.head, task=Task("single_label", labels)))


def test_card_metadata_match_the_given_facts(bundle: Path) -> None:
    digest = digest_of(bundle, "bundle")
    card = _card(bundle, "bundle", licence="apache-2.0", base_model="me/base", measured=[_measured(digest=digest)])
    data = card.data.to_dict()
    assert data["library_name"] == "adapter-export"
    assert (data["license"], data["base_model"], data["base_model_relation"]) == ("apache-2.0", "me/base", "adapter")
    assert {"adapter-export", "bundle", "onnx", "houlsby"} & set(data["tags"]) >= {"adapter-export", "bundle", "onnx"}
    (result,) = data["model-index"][0]["results"]
    assert result["dataset"] == {"name": "test.tsv", "type": "test.tsv", "args": {"sha256": "b" * 64, "rows": 500}}
    (metric,) = result["metrics"]
    assert (metric["type"], metric["value"], metric["args"]) == ("accuracy", 0.9377, {"interval_95": [0.9229, 0.9517]})
    assert "| narrow | accuracy | 0.9377 | 0.9229 to 0.9517 | test.tsv | 500 | onnxruntime 1.32.0 |" in card.text
    assert f"--expect {digest}" in card.text


def test_card_omits_unknown_facts(bundle: Path) -> None:
    card = _card(bundle, "bundle")
    assert not {"license", "base_model", "base_model_relation", "model-index"} & card.data.to_dict().keys()
    assert not {"Scores", "Training data", "Agreement with the original model"} & {
        line[3:] for line in card.text.splitlines()
    }
    assert "None" not in card.text
    assert "null" not in card.text


def test_card_of_an_adapter_describes_its_training(classifier: Adapter, tmp_path: Path) -> None:
    write_adapter(classifier, tmp_path / "a")
    card = _card(tmp_path / "a", "adapter")
    assert card.data.pipeline_tag == "text-classification"
    for line in (
        f"| {classifier.name} | training | train.tsv | 3,229 | aaaaaaaaaaaa |",
        f"| {classifier.name} | accuracy | 0.9375 | test in training |",
        f"| {classifier.name} | accuracy | 0.8750 | validation in training |",
        "class 0, class 1",
        f"`sha256:{digest_of(tmp_path / 'a', 'adapter')}`",
    ):
        assert line in card.text
    evaluated = _card(tmp_path / "a", "adapter", measured=[_measured(source=digest_of(tmp_path / "a", "adapter"))])
    assert "0.9229 to 0.9517" in evaluated.text


def test_scores_and_reports_of_another_are_refused(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(HashError, match=r"the evaluation on `test.tsv` belongs to another bundle"):
        _card(bundle, "bundle", measured=[_measured()])
    with pytest.raises(FormatError, match=r"evaluation.json, `\$.rows`"):
        _measured(rows="many")
    with pytest.raises(FormatError, match=r"evaluation.json"):
        measured_from_json([], "evaluation.json")
    copy = shutil.copytree(bundle, tmp_path / "copy")
    (copy / "check.json").write_text("{}")
    with pytest.raises(FormatError, match=r"check.json"):
        _card(copy, "bundle")


WORDS = (
    "<script>alert(1)</script>",
    "[click](javascript:alert(1))",
    "![x](http://evil.example/x.png)",
    "a | b | c",
    "`code`",
    "**bold** _it_ ~~no~~",
    "line\n# title\n---",
    "https://evil.example www.evil.example a@evil.example",
    "\u202egnol \x1b[31mred",
    "&lt;b&gt; \\",
    "$x$ #1 @team :tada:",
)


@pytest.mark.parametrize("words", WORDS)
def test_words_of_others_are_no_markup(words: str, classifier: Adapter, tmp_path: Path) -> None:
    head = classifier.head
    assert head is not None
    assert head.task is not None
    labels = (words, *head.task.labels[1:])
    training = {**TRAINING, "producer": words, "data": {words: {"file": words, "rows": 1, "sha256": words}}}
    made = replace(
        classifier, kind=words, training=training, head=replace(head, task=replace(head.task, labels=labels))
    )
    write_adapter(made, tmp_path / "a")
    card = _card(tmp_path / "a", "adapter")
    assert words in card.data.tags  # as data of YAML, read by the Hub's own library
    page = MarkdownIt("gfm-like", {"linkify": False}).render(card.text)
    for mark in ("<script", "<a ", "<img", "<strong", "<em", "<s>", "<b>", "\u202e", "\x1b"):
        assert mark not in page
    assert page.count("<h1") == 1
    assert {row.count("<td") for row in page.split("<tr>")[1:]} <= {0, 2, 3, 4, 5}
    assert page.count("<code") == 2  # the commands and the digest


def test_card_contains_the_check_report(bundle: Path, tmp_path: Path) -> None:
    from adapter_export.bundle.bundle_reader import OpenedBundle
    from adapter_export.bundle.proof.proof_plan import plan_check
    from adapter_export.bundle.proof.prove import prove

    copy = shutil.copytree(bundle, tmp_path / "copy")
    report = prove(plan_check(OpenedBundle.open(copy), quick=True), None)
    (copy / "check.json").write_text(json.dumps(report.to_json()))
    text = _card(copy, "bundle").text
    assert "## Agreement with the original model" in text
    assert "| verdict | passed (" in text
