"""Baselines of a training, and notes about adapters that do not beat them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from heard import Heard
from sklearn.linear_model import LogisticRegression

import adapter_export as ae
from adapter_export.graph.tasks.metrics import is_better, judge_classes
from adapter_export.training.loop.baseline import Linear


def _features(classes: int) -> tuple[torch.Tensor, np.ndarray]:
    generator = np.random.default_rng(0)
    labels = generator.integers(classes, size=120)
    return torch.from_numpy(generator.normal(size=(120, 12)) + np.eye(classes, 12)[labels]), labels


def test_the_classifier_is_that_of_scikit_learn() -> None:
    features, labels = _features(4)
    fitted = Linear.fitted(features, torch.from_numpy(labels), classes=4)
    reference = LogisticRegression(max_iter=5000, tol=1e-8).fit(features.numpy(), labels)
    torch.testing.assert_close(fitted.weight.T, torch.from_numpy(reference.coef_), atol=1e-3, rtol=0)


def test_sets_of_labels_are_a_classifier_each() -> None:
    features, labels = _features(3)
    truths = np.eye(3)[labels]
    fitted = Linear.fitted(features, torch.from_numpy(truths), classes=3)
    for label in range(3):
        reference = LogisticRegression(max_iter=5000, tol=1e-8).fit(features.numpy(), truths[:, label])
        torch.testing.assert_close(fitted.weight[:, label], torch.from_numpy(reference.coef_[0]), atol=1e-3, rtol=0)


@pytest.mark.parametrize(("wrong", "better"), [(0, False), (2, False), (20, True)])
def test_better_means_beyond_the_confidence_interval(wrong: int, better: bool) -> None:
    right = np.arange(100) % 2
    ours, other = np.eye(2)[right], np.eye(2)[np.where(np.arange(100) < wrong, 1 - right, right)]
    judged = [judge_classes(probabilities, right, ["a", "b"]) for probabilities in (ours, other)]
    assert is_better(*judged, judged[0].metrics[0]) == better


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "train.tsv"
    rows = [f"number {n} is {'good' if n % 2 else 'bad'}\t{'good' if n % 2 else 'bad'}\n" for n in range(240)]
    path.write_text("text\tlabel\n" + "".join(rows) + "some text\trare\nno text\trare\n", "utf-8")
    return path


def _trained(base: ae.Base, table: Path, **options: object) -> tuple[ae.Adapter, list[str]]:
    heard = Heard()
    given = {"kind": "pfeiffer", "bottleneck": 2, "batch_size": 64, "epochs": 1, **options}
    return ae.train(base, table, name="a", reporter=heard, **given), heard.notes


def test_an_adapter_that_does_not_beat_the_base_is_noted(text_folder: Path, table: Path) -> None:
    base = ae.open_base(text_folder / "model.pt")
    adapter, notes = _trained(base, table, learning_rate=1e-9)
    assert adapter.training["baseline"]["name"] == "logistic regression on the base"
    linear, ours = adapter.training["baseline"]["validation"], adapter.training["validation"]
    assert linear["accuracy"] > 0.9 > ours["accuracy"]
    (note,) = [note for note in notes if "not clearly better than" in note]
    assert f"than {linear['accuracy']:.3f} of the logistic regression" in note
    assert "try more, `epochs=2`" in note


def test_rare_classes_are_named(text_folder: Path, table: Path) -> None:
    adapter, notes = _trained(ae.open_base(text_folder / "model.pt"), table, quick=True)
    assert any("1 class with fewer than 5 training rows: `rare` (1)" in note for note in notes)
    trained, right, rows = adapter.training["rare"]["rare"]
    assert (trained, rows) == (1, 1)
    assert f"right answers to rare classes, on the validation rows: `rare` {right} of 1" in notes


def test_a_quick_run_has_no_baseline(text_folder: Path, table: Path) -> None:
    adapter, _ = _trained(ae.open_base(text_folder / "model.pt"), table, quick=True)
    assert "baseline" not in adapter.training


def test_vectors_are_compared_with_those_of_the_base(text_folder: Path, table: Path) -> None:
    base = ae.open_base(text_folder / "model.pt")
    adapter, notes = _trained(base, table, task="embedding", learning_rate=1e-9)
    frozen = adapter.training["baseline"]
    assert frozen["name"] == "frozen base"
    assert frozen["validation"]["neighbour_accuracy"] == pytest.approx(
        adapter.training["validation"]["neighbour_accuracy"], abs=0.1
    )
    assert any("of the frozen base" in note for note in notes)
