"""The task of a head in `config.json`, without guesses beyond it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from adapter_export.format.model_config import class_type, head_task, known_labels
from adapter_export.graph.tasks import Task

LABELS = {"id2label": {"0": "bad", "1": "good"}}
RANKING = Task("ranking", input="pair")
CASES: list[tuple[str, dict[str, Any], int, Task | None]] = [
    ("BertForSequenceClassification", LABELS, 2, Task("single_label", ("bad", "good"))),
    (
        "BertForSequenceClassification",
        LABELS | {"problem_type": "single_label_classification"},
        2,
        Task("single_label", ("bad", "good")),
    ),
    (
        "BertForSequenceClassification",
        LABELS | {"problem_type": "multi_label_classification"},
        2,
        Task("multi_label", ("bad", "good")),
    ),
    ("BertForSequenceClassification", LABELS | {"problem_type": "regression"}, 2, Task("regression")),
    ("BertForSequenceClassification", {"id2label": {"0": "LABEL_0"}}, 1, Task("regression")),
    ("BertForSequenceClassification", LABELS | {"problem_type": "ranking of my own"}, 2, None),
    ("BertForSequenceClassification", LABELS, 3, None),
    ("BertForSequenceClassification", {}, 2, None),
    ("BertForSequenceClassification", {"sentence_transformers": {"activation_fn": "…linear.Identity"}}, 1, RANKING),
    (
        "BertForSequenceClassification",
        {"sbert_ce_default_activation_function": "torch.nn.modules.activation.Sigmoid"},
        1,
        Task("ranking", activation="sigmoid", input="pair"),
    ),
    ("ViTForImageClassification", LABELS, 2, Task("single_label", ("bad", "good"))),
    ("BertForTokenClassification", LABELS, 2, Task("token", ("bad", "good"))),
    ("BertForTokenClassification", {}, 2, None),
    ("BertForQuestionAnswering", {}, 2, Task("span", input="pair")),
    ("BertForMultipleChoice", {}, 1, Task("multiple_choice", input="pair")),
]


@pytest.mark.parametrize(("name", "config", "width", "task"), CASES)
def test_task_of_a_head_is_read_from_the_config(
    name: str, config: dict[str, Any], width: int, task: Task | None
) -> None:
    found, notes = head_task(config, name, width)
    assert found == task
    # a guess and an unknown task are said; one number is a regression by the convention of transformers
    guessed = task is not None and task.type == "single_label" and "problem_type" not in config
    assert bool(notes) == (task is None or guessed)


def test_classes_of_equal_names_are_numbered() -> None:
    """As the two cranes of ImageNet, a bird and a machine."""
    config = {"id2label": {"0": "crane", "1": "hen", "2": "crane"}, "problem_type": "single_label_classification"}
    task, notes = head_task(config, "ViTForImageClassification", 3)
    assert task == Task("single_label", ("crane", "hen", "crane (2)"))
    assert notes == ["two classes are named `crane` in `config.json`: the second becomes `crane (2)`"]


@pytest.mark.parametrize("name", ["BertModel", "BertForMaskedLM", "GPT2LMHeadModel", "BertForPreTraining", ""])
def test_class_names_without_a_task_give_none(name: str) -> None:
    assert class_type(name) is None


def test_labels_are_ordered_by_class_index(tmp_path: Path) -> None:
    names = {str(index): f"class {index}" for index in (10, 2, *range(2), *range(3, 10))}
    (tmp_path / "config.json").write_text(json.dumps({"id2label": names}))
    assert known_labels(tmp_path / "config.json") == tuple(f"class {index}" for index in range(11))
    assert known_labels(tmp_path / "none.json") == ()
