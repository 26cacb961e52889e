"""Heads on bases that do not show their architecture: unknown ones are refused, and never guessed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from peft_folders import Arrays, adapter_folder, bare_bert, changed, expected, import_peft, linear_site

from adapter_export.errors import AdapterError, TensorError, UsageError
from adapter_export.graph.tasks import Task
from adapter_export.numerics.evaluate_adapter import evaluate_head
from adapter_export.plugins.formats.importers.peft.head import HeadChoice
from adapter_export.plugins.formats.importers.tensor_map import Imported
from adapter_export.sites.site import SiteMap

STRANGE = "base_model.model.strange.encoder.layer."


def imported(folder: Path, choice: HeadChoice | None = None, **base: Any) -> Imported:
    sites, tensors = bare_bert()
    return import_peft(folder, sites, base="sha256:0", name="a", **{"base_tensor": tensors.get, "head": choice, **base})


def renamed(old: str, new: str) -> Callable[[Arrays], Arrays]:
    return lambda tensors: {name.replace(old, new): tensor for name, tensor in tensors.items()}


OF_ANOTHER_LIBRARY = {"task_type": None, "auto_mapping": {"base_model_class": "Strange", "parent_library": "strange"}}


def test_a_head_of_transformers_that_the_base_does_not_show_is_refused(tmp_path: Path) -> None:
    """A description does not help: PEFT may have left out layers before the classifier."""
    strange = changed(adapter_folder("bert_lora_classify"), tmp_path / "a", tensors=renamed(".bert.", ".strange."))
    for choice in (None, HeadChoice(pooling="mean"), HeadChoice(pooling="first", activation="tanh")):
        with pytest.raises(AdapterError, match=r"does not show; found .*a model with a base named `strange`"):
            imported(strange, choice)


@pytest.mark.parametrize("choice", [HeadChoice(pooling="mean"), HeadChoice(pooling="first", activation="gelu")])
def test_contradicting_head_descriptions_are_refused(choice: HeadChoice) -> None:
    with pytest.raises(UsageError, match="does not match the head of `bert`"):
        imported(adapter_folder("bert_lora_classify"), choice)


def test_a_head_of_another_library_is_as_described(tmp_path: Path) -> None:
    strange = changed(
        adapter_folder("bert_lora_classify"),
        tmp_path / "a",
        tensors=renamed(".bert.", ".strange."),
        config=OF_ANOTHER_LIBRARY,
    )
    with pytest.raises(AdapterError, match=r"are not identified as a head"):
        imported(strange)
    assert any("compared with nothing" in note for note in imported(strange, HeadChoice(pooling="mean")).notes)
    hidden = np.random.default_rng(0).normal(0, 1, (2, 5, 32))
    adapter = imported(strange, HeadChoice(pooling="mean")).adapter
    weights = {
        name.removeprefix("head.classifier."): array for name, array in adapter.weights.items() if "head" in name
    }
    wanted = hidden.mean(1) @ weights["weight"].astype(float) + weights["bias"]
    np.testing.assert_allclose(evaluate_head(adapter, hidden, np.ones((2, 5))), wanted, rtol=0, atol=1e-12)


def test_a_dense_head_without_a_recipe_needs_its_activation(tmp_path: Path) -> None:
    folder = changed(
        adapter_folder("roberta_lora_classify"),
        tmp_path / "a",
        tensors=renamed(".roberta.", ".strange."),
        config=OF_ANOTHER_LIBRARY,
    )
    with pytest.raises(UsageError, match=r"the activation after the head's dense layer is unknown.*Pass `activation`"):
        imported(folder, HeadChoice(pooling="first"))
    record = expected("roberta_lora_classify")
    mask = record["input.attention_mask"]
    tanh = imported(folder, HeadChoice("first", "tanh")).adapter
    np.testing.assert_allclose(evaluate_head(tanh, record["head.hidden"], mask), record["float64.logits"], atol=1e-10)
    gelu = imported(folder, HeadChoice("first", "gelu")).adapter
    assert np.abs(evaluate_head(gelu, record["head.hidden"], mask) - record["float64.logits"]).max() > 0.01


def test_square_head_layers_are_refused_as_ambiguous(tmp_path: Path) -> None:
    def square(tensors: Arrays) -> Arrays:
        wide = {"weight": np.eye(32, dtype=np.float32), "bias": np.zeros(32, np.float32)}
        return renamed(".roberta.", ".strange.")(tensors) | {
            f"base_model.model.classifier.out_proj.{name}": array for name, array in wide.items()
        }

    folder = changed(adapter_folder("roberta_lora_classify"), tmp_path / "a", tensors=square, config=OF_ANOTHER_LIBRARY)
    with pytest.raises(UsageError, match="order of the head's layers is ambiguous"):
        imported(folder, HeadChoice("first", "tanh"))


def test_missing_layers_of_the_head_recipe_are_named() -> None:
    with pytest.raises(AdapterError, match=r"no `bert\.pooler\.dense\.weight`.*modules_to_save"):
        imported(adapter_folder("bert_lora_classify"), base_tensor=lambda _: None)


def test_a_head_layer_missing_from_older_versions_is_named(tmp_path: Path) -> None:
    """They saved the classifier of DistilBERT, and not the layer before it that was trained at random."""

    def cut(tensors: Arrays) -> Arrays:
        return {name: tensor for name, tensor in tensors.items() if "pre_classifier" not in name}

    folder = changed(adapter_folder("distilbert_lora_classify"), tmp_path / "a", tensors=cut)
    with pytest.raises(AdapterError, match=r"no `pre_classifier\.weight`"):
        imported_distilbert(folder)


def imported_distilbert(folder: Path) -> Imported:
    sites = tuple(
        linear_site(f"layers.{n}.{name}", f"transformer.layer.{n}.attention.{name}", 32, 32)
        for n in range(2)
        for name in ("q_lin", "v_lin")
    )
    return import_peft(folder, SiteMap(sites, "final", 32), base="sha256:0", name="a")


def test_head_of_another_width_is_refused(tmp_path: Path) -> None:
    def narrow(tensors: Arrays) -> Arrays:
        return tensors | {"base_model.model.classifier.weight": np.ones((3, 31), np.float32)}

    folder = changed(adapter_folder("bert_lora_tag"), tmp_path / "a", tensors=narrow)
    with pytest.raises(
        TensorError, match=r"a layer \[3, 31\] with the bias \[5\]; expected one that reads 32 features"
    ):
        imported(folder)


def test_trained_modules_beyond_the_head_are_refused(tmp_path: Path) -> None:
    def more(tensors: Arrays) -> Arrays:
        return tensors | {"base_model.model.bert.embeddings.LayerNorm.weight": np.ones(32, np.float32)}

    config = {"modules_to_save": ["classifier", "LayerNorm"]}
    folder = changed(adapter_folder("bert_lora_classify"), tmp_path / "a", tensors=more, config=config)
    for choice in (None, HeadChoice(leave_out=True)):
        with pytest.raises(AdapterError, match=r"trained modules that cannot.*found `bert\.embeddings\.LayerNorm`"):
            imported(folder, choice)


def test_a_saved_module_without_a_task_needs_its_class(tmp_path: Path) -> None:
    folder = changed(adapter_folder("bert_lora_classify"), tmp_path / "a", config={"task_type": None})
    with pytest.raises(AdapterError, match=r"`classifier`, `score` and the task `None`.*`pooling=.first.`"):
        imported(folder)
    named = {"task_type": None, "auto_mapping": {"base_model_class": "BertForSequenceClassification"}}
    head = imported(changed(folder, tmp_path / "b", config=named)).adapter.head
    assert head is not None
    assert head.task is None


@pytest.mark.parametrize(
    ("choice", "task", "note"),
    [
        (HeadChoice(), None, "the number of labels per text is unknown, so"),
        (
            HeadChoice(task="multi_label"),
            Task("multi_label", ("LABEL_0", "LABEL_1", "LABEL_2")),
            "save class names",
        ),
        (HeadChoice(labels=("a", "b", "c")), Task("single_label", ("a", "b", "c")), "assuming one (`single_label`)"),
        (HeadChoice(known_labels=("a", "b", "c")), Task("single_label", ("a", "b", "c")), "assuming one"),
        (HeadChoice(known_labels=("a", "b")), None, "the number of labels per text is unknown"),
        (
            HeadChoice(known_labels=("a", "b", "c"), known_problem="multi_label"),
            Task("multi_label", ("a", "b", "c")),
            None,
        ),
        (HeadChoice(known_problem="regression"), Task("regression"), None),
        (
            HeadChoice(labels=("a", "b", "c"), task="single_label", known_problem="multi_label"),
            Task("single_label", ("a", "b", "c")),
            None,
        ),
    ],
)
def test_task_of_a_text_head_follows_choice_and_notes(choice: HeadChoice, task: Task | None, note: str | None) -> None:
    """PEFT saves heads for one label, for several and for numbers alike."""
    found = imported(adapter_folder("bert_lora_classify"), choice)
    assert found.adapter.head is not None
    assert found.adapter.head.task == task
    said = [one for one in found.notes if "label" in one or "classes" in one]
    assert [note in one for one in said] == ([] if note is None else [True])


def test_question_answering_head_becomes_a_span_task(tmp_path: Path) -> None:
    def two(tensors: Arrays) -> Arrays:
        return {
            name: tensor[:2] if name.endswith(("classifier.weight", "classifier.bias")) else tensor
            for name, tensor in tensors.items()
        }

    folder = changed(adapter_folder("bert_lora_tag"), tmp_path / "a", tensors=two, config={"task_type": "QUESTION_ANS"})
    head = imported(folder).adapter.head
    assert head is not None
    assert head.task == Task("span", input="pair")
    five = changed(adapter_folder("bert_lora_tag"), tmp_path / "b", config={"task_type": "QUESTION_ANS"})
    with pytest.raises(AdapterError, match="a head for `span` has a wrong number of outputs; found 5; expected 2"):
        imported(five)


@pytest.mark.parametrize(
    ("folder", "choice", "words"),
    [
        ("bert_lora_tag", HeadChoice(task="single_label"), "the task does not match the head"),
        ("bert_lora_classify", HeadChoice(pooling="tokens"), "the pooling does not match the head"),
        ("bert_lora_classify", HeadChoice(task="span"), "the task does not match the head"),
        (
            "bert_lora_classify",
            HeadChoice(task="ranking"),
            "a head for `ranking` has a wrong number of outputs; found 3",
        ),
        ("bert_lora", HeadChoice(task="single_label"), "a head is described"),
    ],
)
def test_contradicting_tasks_are_refused(folder: str, choice: HeadChoice, words: str) -> None:
    with pytest.raises((UsageError, AdapterError)) as caught:
        imported(adapter_folder(folder), choice)
    assert words in str(caught.value)


def test_head_options_without_a_head_are_refused() -> None:
    with pytest.raises(UsageError, match="a head is described"):
        imported(adapter_folder("bert_lora"), HeadChoice(labels=("a",)))


def test_missing_head_bias_is_zero(tmp_path: Path) -> None:
    def cut(tensors: Arrays) -> Arrays:
        return {name: tensor for name, tensor in tensors.items() if not name.endswith("classifier.bias")}

    adapter = imported(changed(adapter_folder("bert_lora_tag"), tmp_path / "a", tensors=cut)).adapter
    assert not adapter.weights["head.classifier.bias"].any()


def test_keys_of_older_versions_are_read(tmp_path: Path) -> None:
    """They left their wrappers in the keys, with the untrained original beside the trained copy."""

    def older(tensors: Arrays) -> Arrays:
        wrapped = renamed(".classifier.", ".classifier.modules_to_save.")(tensors)
        return wrapped | {"base_model.model.classifier.original_module.weight": np.zeros((3, 32), np.float32)}

    found = imported(changed(adapter_folder("bert_lora_classify"), tmp_path / "a", tensors=older)).adapter
    wanted = imported(adapter_folder("bert_lora_classify")).adapter
    assert found.weights.keys() == wanted.weights.keys()
    assert all(np.array_equal(found.weights[name], wanted.weights[name]) for name in wanted.weights)
