"""Every task trained on a small base, and every head in torch against ONNX Runtime."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from building import build_bundle
from heads import heads, with_head
from heard import Interrupt
from small_encoder import BAD, GOOD, OTHER, WIDTH
from small_task import make_adapter, sites_of, with_random_weights
from torch.nn import functional as F

from adapter_export.errors import DataError
from adapter_export.format.tabular.labelled import Columns
from adapter_export.format.tabular.training_tables import TaskFiles, read_tables
from adapter_export.graph.adapter import Head
from adapter_export.graph.heads import HeadOptions, make_head
from adapter_export.graph.kinds import houlsby
from adapter_export.graph.tasks import ProblemType, Task
from adapter_export.graph.tasks.types.span import GivenSpan
from adapter_export.numerics.evaluate_adapter import evaluate_head
from adapter_export.numerics.sample_inputs import input_cases
from adapter_export.onnx_backend.base.onnx_base import open_onnx
from adapter_export.reporting import Reporter
from adapter_export.runtime import Bundle
from adapter_export.text import Pair, Tokenizer
from adapter_export.torch_backend.attach import AdaptedModel, attach
from adapter_export.torch_backend.base.to_onnx import export_onnx
from adapter_export.torch_backend.base.torch_base import TorchBase
from adapter_export.torch_backend.torch_runner import TorchRunner
from adapter_export.training.loop.data import TextExamples, TextSource, TrainingData
from adapter_export.training.loop.init_adapter import init_adapter
from adapter_export.training.loop.measure import cosine_apart, judged, measure
from adapter_export.training.loop.settings import LoopSpec
from adapter_export.training.loop.task_files import TextTask, read_task
from adapter_export.training.loop.train_loop import evaluate, train
from adapter_export.training.objectives import OBJECTIVES
from adapter_export.training.objectives.objective import IGNORED, class_loss

TAGS = {**dict.fromkeys(GOOD, "praise"), **dict.fromkeys(BAD, "blame")}


def rows(problem: ProblemType, count: int = 240) -> list[dict[str, Any]]:
    """Return texts with informative words among others, and their answers by task type."""
    rng = np.random.default_rng(0)
    found = {}
    while len(found) < count:
        words = [str(word) for word in rng.choice([*GOOD, *BAD, *OTHER, *OTHER], int(rng.integers(3, 9)))]
        balance = sum((word in GOOD) - (word in BAD) for word in words)
        if balance or problem == "token":
            found[tuple(words)] = balance
    return [_row(problem, words, balance, rng) for words, balance in found.items()]


def _row(problem: ProblemType, words: tuple[str, ...], balance: int, rng: np.random.Generator) -> dict[str, Any]:
    text, kind = " ".join(words), "good" if balance > 0 else "bad"
    plain = " ".join(rng.choice(OTHER, 4))
    match problem:
        case "multi_label":
            found = {"praise": GOOD, "blame": BAD, "film": ("film",)}
            return {"text": text, "label": [name for name, of in found.items() if set(of) & set(words)]}
        case "multiple_choice":
            right = int(rng.integers(3))
            choices = [f"{plain} {rng.choice(GOOD if at == right else BAD)} {at * 'a '}" for at in range(3)]
            return {"text": " ".join(rng.choice(OTHER, 3)), "pair": choices, "label": right}
        case "token":
            return {"text": list(words), "label": [TAGS.get(word, "O") for word in words]}
        case "span":
            answer = str(rng.choice(GOOD))
            around = rng.choice(OTHER, 6).tolist()
            around.insert(int(rng.integers(7)), answer)
            return {"text": f"{kind} {plain}", "pair": " ".join(around), "label": answer}
        case "regression":
            return {"text": text, "label": [balance / 2, len(words) / 4]}
        case "ranking":
            query = " ".join(rng.choice(("film", "play", "this"), 3))
            return {"text": query, "pair": text, "label": int(balance > 0)}
        case _:
            return {"text": text, "label": kind}


PAIRS = ("multiple_choice", "span", "ranking")


def read(base: TorchBase, problem: ProblemType, folder: Path, found: list[dict[str, Any]] | None = None) -> TextTask:
    assert base.tokenizer is not None
    path = folder / "rows.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in found or rows(problem)), encoding="utf-8")
    tokenizer = Tokenizer.from_json(base.tokenizer, base.max_tokens or 24)
    columns = Columns(pair="pair" if problem in PAIRS else None)
    files = TaskFiles(path, 0.3, columns=columns, problem=problem)
    return read_task(read_tables(files), TextSource(tokenizer, tuple(record.name for record in base.inputs)))


def model_for(base: TorchBase, head: Head) -> AdaptedModel:
    sites = sites_of(base)
    adapter = init_adapter(houlsby().with_widths(b=4), sites, name="a", base=base.fingerprint, head=head)
    return attach(base, adapter, sites=sites)


LOOKS: dict[ProblemType, tuple[dict[str, Any], str, float]] = {
    "single_label": ({"labels": ("bad", "good"), "options": HeadOptions("first", dense=1)}, "accuracy", 0.8),
    "multi_label": ({"labels": ("blame", "film", "praise")}, "micro_f1", 0.85),
    "multiple_choice": ({}, "accuracy", 0.9),
    "token": ({"labels": ("O", "blame", "praise")}, "macro_f1", 0.95),
    "span": ({}, "exact_match", 0.8),
    "regression": ({"numbers": 2, "options": HeadOptions(dense=1)}, "pearson", 0.6),
    "embedding": (
        {"numbers": 8, "options": HeadOptions(projection=True, l2_normalise=True)},
        "neighbour_accuracy",
        0.85,
    ),
    "ranking": ({}, "mrr", 0.8),
}


@pytest.mark.parametrize("problem", LOOKS)
def test_each_task_is_learnt(problem: ProblemType, base: TorchBase, tmp_path: Path) -> None:
    look, metric, enough = LOOKS[problem]
    found = read(base, problem, tmp_path)
    model = model_for(base, make_head(problem, width=WIDTH, **look))
    data = TrainingData(found.training, found.validation)
    epochs = 6 if problem in ("multiple_choice", "span") else 20  # both are learned in three
    settings = LoopSpec(epochs=epochs, batch_size=16, learning_rate=0.03, patience=20)
    before = evaluate(model, found.validation, settings)
    result = train(model, data, settings)
    assert result.best.validation.metrics[metric] > max(enough, before.metrics[metric])
    assert result.best.validation.loss < before.loss
    scores = evaluate(model, found.validation, settings)
    assert scores.document() == pytest.approx(result.best.validation.document(), rel=1e-5)


@pytest.mark.parametrize("problem", ["token", "span", "multiple_choice", "multi_label", "regression", "ranking"])
def test_scores_do_not_depend_on_the_batches(problem: ProblemType, base: TorchBase, tmp_path: Path) -> None:
    found = read(base, problem, tmp_path, rows(problem, 40))
    model = model_for(base, make_head(problem, width=WIDTH, **LOOKS[problem][0]))
    one, other = (evaluate(model, found.training, LoopSpec(batch_size=size)) for size in (2, 13))
    assert one.loss == pytest.approx(other.loss, rel=1e-5)
    assert one.metrics == pytest.approx(other.metrics, abs=1e-5)


@pytest.mark.parametrize("problem", ["span", "multiple_choice", "multi_label", "ranking"])
def test_an_interrupted_run_ends_with_the_same_bits(problem: ProblemType, base: TorchBase, tmp_path: Path) -> None:
    found = read(base, problem, tmp_path, rows(problem, 60))
    data = TrainingData(found.training, found.validation)
    settings = LoopSpec(epochs=2, batch_size=8, checkpoint_steps=2)

    def run(folder: Path, reporter: Reporter) -> dict[str, np.ndarray]:
        folder.mkdir(exist_ok=True)
        model = model_for(base, make_head(problem, width=WIDTH, **LOOKS[problem][0]))
        train(model, data, settings, reporter=reporter, checkpoints=folder)
        return dict(model.to_adapter().weights)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "stopped", Interrupt(5))
    found_weights, whole = run(tmp_path / "stopped", Reporter()), run(tmp_path / "whole", Reporter())
    assert all(np.array_equal(found_weights[name], whole[name]) for name in whole)


def test_rows_of_one_query_stay_together(base: TorchBase, tmp_path: Path) -> None:
    found = read(base, "ranking", tmp_path)
    queries = [{pair.first for pair in part.texts} for part in (found.training, found.validation)]
    assert not queries[0] & queries[1]
    assert len(queries[0]) > 3 * len(queries[1]) / 2


class TestSpans:
    def test_answer_spans_become_token_positions(self, base: TorchBase) -> None:
        assert base.tokenizer is not None
        tokenizer, names = Tokenizer.from_json(base.tokenizer, 24), tuple(record.name for record in base.inputs)
        texts = [Pair("good film", "this play was very dull and poor"), Pair("film", "the play")]
        answers = [(GivenSpan("very dull", 14),), (GivenSpan("the play", 0),)]
        found = TextExamples.of(texts, answers, tokenizer, names, "span")
        # [CLS] good film [SEP] this play was very dull and poor [SEP]
        logits = torch.randn(2, 12, 2)
        results, places = found.matched(logits, np.array([0, 1]))
        assert places.tolist() == [[7, 8], [3, 4]]
        assert torch.isneginf(results[0, :, 0]).tolist() == [True] * 4 + [False] * 7 + [True]
        assert torch.isneginf(results[1, :, 1]).tolist() == [True] * 3 + [False] * 2 + [True] * 7
        assert found.lost == []

    def test_an_answer_that_is_cut_away_is_not_learnt(self, base: TorchBase) -> None:
        assert base.tokenizer is not None
        tokenizer, names = Tokenizer.from_json(base.tokenizer, 10), tuple(record.name for record in base.inputs)
        text = [Pair("film", "the film was this play and very dull")]
        found = TextExamples.of(text, [(GivenSpan("dull", 32),)], tokenizer, names, "span")
        assert (found.cut, found.lost) == ((0,), [0])
        results, places = found.matched(torch.randn(1, 10, 2), np.array([0]))
        assert places.tolist() == [[IGNORED, IGNORED]]
        assert [float(one) for one in OBJECTIVES["span"].loss(results, places, None)] == [0, 0]
        left = TextExamples.of(text, [(GivenSpan("dull", 32),)], tokenizer, names, "span", "left")
        assert (left.cut, left.lost) == ((0,), [])

    def test_span_loss_equals_its_formula(self) -> None:
        logits, places = torch.randn(2, 4, 2), torch.tensor([[0, 2], [IGNORED, IGNORED]])
        logits[:, 3] = -torch.inf
        shares = torch.log_softmax(logits[0, :3], 0)
        total, weight = OBJECTIVES["span"].loss(logits, places, None)
        torch.testing.assert_close(total, -(shares[0, 0] + shares[2, 1]))
        assert weight == 2


def test_every_choice_of_a_question_is_a_row(base: TorchBase) -> None:
    assert base.tokenizer is not None
    tokenizer, names = Tokenizer.from_json(base.tokenizer, 24), tuple(record.name for record in base.inputs)
    texts = [tuple(Pair("film", choice) for choice in choices) for choices in (("good", "bad play"), ("a", "the"))]
    found = TextExamples.of(texts, np.array([1, 0]), tokenizer, names, "multiple_choice")
    (call,) = found.calls(np.array([1, 0]), pads=True)
    assert call.inputs["input_ids"].shape == (4, 6)
    scores, right = found.matched(torch.tensor([[1.0], [2.0], [3.0], [4.0]]), np.array([1, 0]))
    assert (scores.tolist(), right.tolist()) == ([[1.0, 2.0], [3.0, 4.0]], [0, 1])


def test_questions_with_different_numbers_of_choices_are_scored_separately(base: TorchBase, tmp_path: Path) -> None:
    """The loss and the metrics are those of each separate question."""
    assert base.tokenizer is not None
    tokenizer, names = Tokenizer.from_json(base.tokenizer, 24), tuple(record.name for record in base.inputs)
    texts = [tuple(Pair("film", choice) for choice in choices) for choices in (("good", "bad play"), ("a", "the", "b"))]
    found = TextExamples.of(texts, np.array([1, 2]), tokenizer, names, "multiple_choice")
    assert found.lengths.tolist() == [6, 5]
    assert found.sizes == {5, 6}
    scores = torch.tensor([[1.0], [2.5], [3.0], [1.0], [2.0]], requires_grad=True)
    results, right = found.matched(scores, np.array([0, 1]))
    alone, _ = found.matched(scores[:2], np.array([0]))
    assert alone.tolist() == results[:1].tolist() == [[1.0, 2.5, -math.inf]]
    total, weight = class_loss(results, right, None)
    by_question = [F.cross_entropy(own, torch.tensor(place)) for own, place in ((scores[:2, 0], 1), (scores[2:, 0], 2))]
    torch.testing.assert_close(total, sum(by_question))
    assert weight == 2
    total.backward()
    assert scores.grad is not None
    assert scores.grad.isfinite().all()
    assert (scores.grad != 0).all()
    scored = judged(Task("multiple_choice", input="pair"), results.detach(), right, found)
    assert measure(scored) == {"accuracy": 0.5}


class TestTokenTargets:
    def test_only_the_first_token_of_each_word_is_learnt(self, base: TorchBase) -> None:
        assert base.tokenizer is not None
        tokenizer, names = Tokenizer.from_json(base.tokenizer, 24), tuple(record.name for record in base.inputs)
        words = [("good", "film-was", "bad"), ("dull",)]
        found = TextExamples.of(words, [np.array([2, 0, 1]), np.array([1])], tokenizer, names, "token")
        # [CLS] good film - was bad [SEP]: only the first piece of a word has a class
        first = [IGNORED, 2, 0, IGNORED, IGNORED, 1, IGNORED]
        assert learnt(found, [0, 1]) == [first, [IGNORED, 1, *[IGNORED] * 5]]
        assert learnt(found, [1]) == [[IGNORED, 1, IGNORED]]
        assert learnt(found.only(np.array([1])), [0]) == [[IGNORED, 1, IGNORED]]
        flat = np.zeros((4, 3)), np.array([2, 0, 1, 1])
        measured = OBJECTIVES["token"].measured(Task("token", ("a", "b", "c")), *flat, found)
        assert [row.tolist() for row in measured.right] == [[2, 0, 1], [1]]

    def test_padding_has_no_class(self, base: TorchBase, tmp_path: Path) -> None:
        found = read(base, "token", tmp_path).training
        order = np.argsort(found.lengths)[[0, -1]]
        (call,) = found.calls(order, pads=True)
        targets, mask = torch.tensor(learnt(found, order)), call.inputs["attention_mask"]
        assert targets.shape == mask.shape
        assert (targets[mask == 0] == IGNORED).all()
        assert ((targets != IGNORED).sum(1) == torch.from_numpy(found.lengths[order] - 2)).all()


def learnt(examples: TextExamples, rows: Any) -> list[list[int]]:
    """Return the class of each token, `IGNORED` if it has none, for the rows that `matched` keeps."""
    (call,) = examples.calls(np.asarray(rows), pads=True)
    shape = call.inputs["input_ids"].shape
    places, classes = examples.matched(torch.arange(shape[0] * shape[1]).reshape(*shape, 1), np.asarray(rows))
    found = torch.full(shape, IGNORED)
    found.view(-1)[places[:, 0]] = classes
    return found.tolist()


def test_cosine_between_classes_equals_its_formula() -> None:
    rng = np.random.default_rng(0)
    vectors, classes = rng.normal(0.3, 1, (7, 3)), np.array([0, 2, 0, 2, 3, 0, 2])
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    apart = (unit @ unit.T)[classes[:, None] != classes]
    assert cosine_apart(torch.tensor(vectors), torch.tensor(classes)) == pytest.approx(apart.mean())
    assert math.isnan(cosine_apart(torch.tensor(vectors), torch.tensor([1] * 7)))


def test_contrastive_loss_equals_its_formula() -> None:
    rng = np.random.default_rng(0)
    vectors, classes = rng.standard_normal((5, 3)), np.array([0, 1, 0, 2, 1])
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    losses = []
    for row in (0, 1, 2, 4):  # no other row has the class of row 3
        others = [k for k in range(5) if k != row]
        total = np.log(sum(np.exp(unit[row] @ unit[k] / 0.1) for k in others))
        peers = [k for k in others if classes[k] == classes[row]]
        losses.append(-np.mean([unit[row] @ unit[k] / 0.1 - total for k in peers]))
    total, weight = OBJECTIVES["embedding"].loss(torch.from_numpy(vectors), torch.from_numpy(classes), None)
    assert float(total) == pytest.approx(np.sum(losses), rel=1e-9)
    assert weight == len(losses)


def test_rows_without_peers_give_no_loss_and_no_broken_gradient() -> None:
    vectors = torch.randn(3, 4, requires_grad=True)
    loss, weight = OBJECTIVES["embedding"].loss(vectors, torch.arange(3), None)
    loss.backward()
    assert (loss.item(), weight) == (0, 0)
    assert vectors.grad is not None
    assert vectors.grad.eq(0).all()


def test_tokens_without_labels_do_not_count() -> None:
    logits, targets = torch.randn(6, 4), torch.tensor([1, 2, 3])
    total, weight = class_loss(logits[:3], targets, None)
    torch.testing.assert_close(total / weight, F.cross_entropy(logits[:3], targets))
    assert [float(one) for one in class_loss(logits[:0], targets[:0], None)] == [0, 0]


@pytest.mark.parametrize(
    ("problem", "row", "message"),
    [
        ("token", {"text": ["a", "b"], "label": ["x"]}, "line 1: words and labels differ in number"),
        ("token", {"text": ["a", 3], "label": ["x", "y"]}, "line 1: holds no words"),
        ("token", {"text": "a", "label": [None]}, "line 1: a word has no label"),
        ("regression", {"text": "a", "label": "much"}, "line 1: holds no numbers"),
        ("regression", {"text": "a", "label": True}, "line 1: holds no finite numbers"),
        ("regression", {"text": "a", "label": float("inf")}, "line 1: holds no finite numbers"),
        ("regression", {"text": "a", "label": None}, "1 row has no text or no label"),
        ("regression", {"text": "a", "label": [1, 2, 3]}, "different numbers of numbers; found 2, 3"),
        ("multi_label", {"text": "a", "label": ["x", "x"]}, "line 1: a label occurs twice in a set"),
        ("ranking", {"text": "a", "pair": "b", "label": 2}, "line 1: is no relevance; found `2`"),
    ],
)
def test_rows_that_a_task_cannot_use_are_refused(
    problem: ProblemType, row: dict[str, Any], message: str, base: TorchBase, tmp_path: Path
) -> None:
    with pytest.raises(DataError) as caught:
        read(base, problem, tmp_path, [row, *rows(problem, 4)])
    assert message in str(caught.value)


def test_space_separated_words_and_numbers_are_read_from_tables(base: TorchBase, tmp_path: Path) -> None:
    path = tmp_path / "rows.tsv"
    path.write_text("text\tlabel\ngood film\t1 -2.5\nbad play\t0 3\n", encoding="utf-8")
    assert base.tokenizer is not None
    tokenizer, names = Tokenizer.from_json(base.tokenizer, 24), tuple(record.name for record in base.inputs)
    numbers = read_task(read_tables(TaskFiles(path, 0.5, problem="regression")), TextSource(tokenizer, names))
    assert numbers.numbers == 2
    assert sorted(np.concatenate([numbers.training.answers, numbers.validation.answers]).tolist()) == [
        [0, 3],
        [1, -2.5],
    ]
    path.write_text("text\tlabel\ngood film\tA O\nbad play\tB O\n", encoding="utf-8")
    words = read_task(read_tables(TaskFiles(path, 0.5, problem="token")), TextSource(tokenizer, names))
    assert words.labels == ("A", "B", "O")


def test_one_row_per_class_suffices_with_a_validation_file(base: TorchBase, tmp_path: Path) -> None:
    learn, validate = tmp_path / "learn.tsv", tmp_path / "validate.tsv"
    learn.write_text("text\tlabel\ngood film\tgood\nbad play\tbad\n", encoding="utf-8")
    validate.write_text("text\tlabel\ngood play\tgood\n", encoding="utf-8")
    assert base.tokenizer is not None
    tokenizer, names = Tokenizer.from_json(base.tokenizer, 24), tuple(record.name for record in base.inputs)
    found = read_task(read_tables(TaskFiles(learn, validate)), TextSource(tokenizer, names))
    assert (found.labels, found.validation.answers.tolist()) == (("bad", "good"), [1])
    with pytest.raises(DataError, match="one row only"):
        read_tables(TaskFiles(learn, 0.5))
    with pytest.raises(DataError, match="one row only"):  # its rows are compared with each other
        read_tables(TaskFiles(learn, validate, problem="embedding"))


@pytest.fixture(scope="module")
def built(base: TorchBase, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with a head of every shape, with golden vectors by torch; building it compares them."""
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
