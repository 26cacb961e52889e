"""Every task trained on a small base, and every head in torch against ONNX Runtime."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from heads import heads, with_head
from small_encoder import BAD, GOOD, OTHER, WIDTH, load_encoder
from small_task import make_adapter, sites_of, with_random_weights
from torch.nn import functional as F

from adapter_export.bundle.build import build_bundle
from adapter_export.errors import DataError
from adapter_export.graph.adapter import Head
from adapter_export.graph.heads import HeadOptions, make_head
from adapter_export.graph.kinds import houlsby
from adapter_export.graph.tasks import Task
from adapter_export.numerics.evaluate import evaluate_head
from adapter_export.numerics.sample_inputs import input_cases
from adapter_export.onnx_backend.base.base import open_onnx
from adapter_export.runtime import Bundle
from adapter_export.text import Tokenizer
from adapter_export.torch_backend.attach import AdaptedModel, attach
from adapter_export.torch_backend.base.base import TorchBase
from adapter_export.torch_backend.base.to_onnx import export_onnx
from adapter_export.torch_backend.runner import TorchRunner
from adapter_export.torch_backend.train.data import TextExamples
from adapter_export.torch_backend.train.fresh import fresh_adapter
from adapter_export.torch_backend.train.objectives import (
    IGNORED,
    OBJECTIVES,
    Scores,
    contrastive_loss,
    labelled,
    neighbour_accuracy,
    token_loss,
)
from adapter_export.torch_backend.train.record import TrainingSettings
from adapter_export.torch_backend.train.task import TaskFiles, TextTask, read_task
from adapter_export.torch_backend.train.train import TrainingData, evaluate, train

TAGS = {**dict.fromkeys(GOOD, "praise"), **dict.fromkeys(BAD, "blame")}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> TorchBase:
    return load_encoder(tmp_path_factory.mktemp("base") / "model.pt")


def rows(task: Task, count: int = 240) -> list[dict[str, Any]]:
    """Texts of telling words among others: what there is to say of them by task."""
    rng = np.random.default_rng(0)
    found = {}
    while len(found) < count:
        words = [str(word) for word in rng.choice([*GOOD, *BAD, *OTHER, *OTHER], int(rng.integers(3, 9)))]
        balance = sum((word in GOOD) - (word in BAD) for word in words)
        if balance or task == "token":
            found[tuple(words)] = balance
    by_task = {
        "single_label": lambda words, balance: (" ".join(words), "good" if balance > 0 else "bad"),
        "token": lambda words, _: (list(words), [TAGS.get(word, "O") for word in words]),
        "regression": lambda words, balance: (" ".join(words), [balance / 2, len(words) / 4]),
        "embedding": lambda words, balance: (" ".join(words), "good" if balance > 0 else "bad"),
    }
    pairs = (by_task[task](*item) for item in found.items())
    return [{"text": text, "label": label} for text, label in pairs]


def read(base: TorchBase, task: Task, folder: Path, found: list[dict[str, Any]] | None = None) -> TextTask:
    assert base.tokenizer is not None
    path = folder / "rows.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in found or rows(task)), encoding="utf-8")
    tokenizer = Tokenizer.from_json(base.tokenizer, base.max_tokens or 24)
    return read_task(TaskFiles(path, 0.3, task=task), tokenizer, tuple(record.name for record in base.inputs))


def model_for(base: TorchBase, head: Head) -> AdaptedModel:
    sites = sites_of(base)
    adapter = fresh_adapter(houlsby(), sites, name="a", base=base.fingerprint, bottleneck=4, head=head)
    return attach(base, adapter, sites=sites)


LOOKS: dict[Task, tuple[dict[str, Any], str, float]] = {
    "single_label": (
        {"labels": ("bad", "good"), "options": HeadOptions("first", dense=1)},
        "accuracy",
        0.85,
    ),
    "token": ({"labels": ("O", "blame", "praise")}, "macro_f1", 0.95),
    "regression": ({"numbers": 2, "options": HeadOptions(dense=1)}, "pearson", 0.6),
    "embedding": (
        {"numbers": 8, "options": HeadOptions(projection=True, l2_normalise=True)},
        "neighbour_accuracy",
        0.85,
    ),
}


@pytest.mark.parametrize("task", LOOKS)
def test_each_task_is_learnt(task: Task, base: TorchBase, tmp_path: Path) -> None:
    look, metric, enough = LOOKS[task]
    found = read(base, task, tmp_path)
    model = model_for(base, make_head(task, width=WIDTH, **look))
    data = TrainingData(found.training, found.validation)
    before = evaluate(model, found.validation, 16)
    result = train(model, data, TrainingSettings(epochs=20, batch_size=16, learning_rate=0.03, patience=20))
    assert result.best.validation.metrics[metric] > max(enough, before.metrics[metric])
    assert result.best.validation.loss < before.loss
    assert evaluate(model, found.validation, 16) == result.best.validation


@pytest.mark.parametrize("task", ["token", "regression"])
def test_scores_do_not_depend_on_the_batches(task: Task, base: TorchBase, tmp_path: Path) -> None:
    found = read(base, task, tmp_path, rows(task, 20))
    model = model_for(base, make_head(task, width=WIDTH, **LOOKS[task][0]))
    one, other = (evaluate(model, found.training, size) for size in (2, 13))
    assert one.loss == pytest.approx(other.loss, rel=1e-5)
    assert one.metrics == pytest.approx(other.metrics, abs=1e-5)


class TestTokenTargets:
    def test_the_first_token_of_each_word_and_nothing_else(self, base: TorchBase) -> None:
        assert base.tokenizer is not None
        tokenizer, names = Tokenizer.from_json(base.tokenizer, 24), tuple(record.name for record in base.inputs)
        words = [("good", "film-was", "bad"), ("dull",)]
        found = TextExamples.of(words, [np.array([2, 0, 1]), np.array([1])], tokenizer, names)
        # [CLS] good film - was bad [SEP]: the pieces of a word after its first have no class
        first = [IGNORED, 2, 0, IGNORED, IGNORED, 1, IGNORED]
        assert found.targets(np.array([0, 1])).tolist() == [first, [IGNORED, 1, *[IGNORED] * 5]]
        assert found.targets(np.array([1])).tolist() == [[IGNORED, 1, IGNORED]]
        assert found.only(np.array([1])).targets(np.array([0])).tolist() == [[IGNORED, 1, IGNORED]]

    def test_padding_has_no_class(self, base: TorchBase, tmp_path: Path) -> None:
        found = read(base, "token", tmp_path).training
        order = np.argsort(found.lengths)[[0, -1]]
        targets, mask = found.targets(order), found.inputs(order)["attention_mask"]
        assert targets.shape == mask.shape
        assert (targets[mask == 0] == IGNORED).all()
        assert ((targets != IGNORED).sum(1) == torch.from_numpy(found.lengths[order] - 2)).all()


def test_the_contrastive_loss_by_hand() -> None:
    rng = np.random.default_rng(0)
    vectors, classes = rng.standard_normal((5, 3)), np.array([0, 1, 0, 2, 1])
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    losses = []
    for row in (0, 1, 2, 4):  # row 3 has no peer
        others = [k for k in range(5) if k != row]
        total = np.log(sum(np.exp(unit[row] @ unit[k] / 0.1) for k in others))
        peers = [k for k in others if classes[k] == classes[row]]
        losses.append(-np.mean([unit[row] @ unit[k] / 0.1 - total for k in peers]))
    found = contrastive_loss(torch.from_numpy(vectors), torch.from_numpy(classes))
    assert float(found) == pytest.approx(np.mean(losses), rel=1e-9)


def test_rows_without_peers_give_no_loss_and_no_broken_gradient() -> None:
    vectors = torch.randn(3, 4, requires_grad=True)
    loss = contrastive_loss(vectors, torch.arange(3))
    loss.backward()
    assert loss.item() == 0
    assert vectors.grad is not None
    assert vectors.grad.eq(0).all()


def test_the_nearest_neighbour_by_hand() -> None:
    vectors = torch.tensor([[1.0, 0.0], [2.0, 0.1], [0.0, 1.0], [0.3, 3.0]])
    assert neighbour_accuracy(vectors, torch.tensor([0, 0, 1, 1])) == 1.0
    assert neighbour_accuracy(vectors, torch.tensor([0, 1, 1, 1])) == 0.5


def test_tokens_without_labels_do_not_count() -> None:
    logits, targets = torch.randn(2, 3, 4), torch.tensor([[IGNORED, 1, 2], [3, IGNORED, IGNORED]])
    results, learnt = labelled(logits, targets)
    assert learnt.tolist() == [1, 2, 3]
    expected = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED)
    torch.testing.assert_close(token_loss(results, learnt), expected)
    assert token_loss(*labelled(logits, torch.full((2, 3), IGNORED))).item() == 0


def test_regression_scores_by_hand() -> None:
    found, wanted = torch.tensor([[1.0], [2.0], [4.0]]), torch.tensor([[1.0], [3.0], [5.0]])
    scores: Scores = OBJECTIVES["regression"].scores(found, wanted)
    assert scores.loss == pytest.approx(2 / 3)
    assert scores.metrics["mean_absolute_error"] == pytest.approx(2 / 3)
    assert scores.metrics["pearson"] == pytest.approx(np.corrcoef(found[:, 0], wanted[:, 0])[0, 1])
    assert OBJECTIVES["regression"].scores(torch.ones(3, 1), wanted).metrics["pearson"] == 0


@pytest.mark.parametrize(
    ("task", "row", "message"),
    [
        ("token", {"text": ["a", "b"], "label": ["x"]}, "line 1: words and labels differ in number"),
        ("token", {"text": ["a", 3], "label": ["x", "y"]}, "line 1: holds no words"),
        ("token", {"text": "a", "label": [None]}, "line 1: a word has no label"),
        ("regression", {"text": "a", "label": "much"}, "line 1: holds no numbers"),
        ("regression", {"text": "a", "label": True}, "line 1: holds no finite numbers"),
        ("regression", {"text": "a", "label": float("inf")}, "line 1: holds no finite numbers"),
        ("regression", {"text": "a", "label": None}, "1 rows have no text or no label"),
        ("regression", {"text": "a", "label": [1, 2, 3]}, "different numbers of numbers; found 2, 3"),
    ],
)
def test_rows_that_a_task_cannot_use(
    task: Task, row: dict[str, Any], message: str, base: TorchBase, tmp_path: Path
) -> None:
    with pytest.raises(DataError) as caught:
        read(base, task, tmp_path, [row, *rows(task, 4)])
    assert message in str(caught.value)


def test_words_and_numbers_in_a_table_with_spaces_between_them(base: TorchBase, tmp_path: Path) -> None:
    path = tmp_path / "rows.tsv"
    path.write_text("text\tlabel\ngood film\t1 -2.5\nbad play\t0 3\n", encoding="utf-8")
    assert base.tokenizer is not None
    tokenizer, names = Tokenizer.from_json(base.tokenizer, 24), tuple(record.name for record in base.inputs)
    numbers = read_task(TaskFiles(path, 0.5, task="regression"), tokenizer, names)
    assert numbers.numbers == 2
    assert sorted(np.concatenate([numbers.training.answers, numbers.validation.answers]).tolist()) == [
        [0, 3],
        [1, -2.5],
    ]
    path.write_text("text\tlabel\ngood film\tA O\nbad play\tB O\n", encoding="utf-8")
    words = read_task(TaskFiles(path, 0.5, task="token"), tokenizer, names)
    assert words.labels == ("A", "B", "O")


@pytest.fixture(scope="module")
def built(base: TorchBase, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with a head of every look, its golden vectors by torch; building it compares them."""
    folder = tmp_path_factory.mktemp("built")
    export_onnx(base, folder / "base.onnx")
    plain = with_random_weights(make_adapter(base, labels=None))
    adapters = [with_head(plain, name, head) for name, head in heads(WIDTH).items()]
    onnx_base = open_onnx(folder / "base.onnx")
    cases = input_cases(onnx_base.inputs, seed=0, shapes=[dict.fromkeys(("batch",), 3) | {"sequence": 7, "tokens": 7}])
    build_bundle(onnx_base, adapters, folder / "bundle", references=TorchRunner(base), cases=cases)
    return folder / "bundle"


@pytest.mark.parametrize("name", heads(WIDTH))
def test_torch_numpy_and_onnxruntime_agree(name: str, base: TorchBase, built: Path) -> None:
    bundle = Bundle.open(built)
    adapter = with_head(with_random_weights(make_adapter(base, labels=None)), name, heads(WIDTH)[name])
    mask = (np.arange(9) < np.array([9, 4, 1])[:, None]).astype(np.int64)
    inputs = {"input_ids": np.random.default_rng(1).integers(4, 20, mask.shape) * mask, "attention_mask": mask}
    session = bundle.session(threads=1)
    output, model = session.output(name), TorchRunner(base).model(adapter)
    assert output is not None
    assert model.task == session.task(name)
    found = session.run(inputs, name)[output]
    with torch.inference_mode():
        tensors = {key: torch.from_numpy(array) for key, array in inputs.items()}
        in_torch, hidden = model.head(**tensors).numpy(), model.hidden(**tensors).numpy()
    np.testing.assert_allclose(found, in_torch, rtol=0, atol=2e-5)
    np.testing.assert_allclose(in_torch, evaluate_head(adapter, hidden, mask), rtol=0, atol=2e-5)
