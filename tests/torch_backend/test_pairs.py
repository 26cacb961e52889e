"""Embedders trained on pairs: their loss and metrics compared with sentence-transformers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from heard import Interrupt
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator
from sentence_transformers.sentence_transformer.losses import MatryoshkaLoss, MultipleNegativesRankingLoss
from small_encoder import BAD, GOOD, OTHER, WIDTH
from small_task import sites_of
from torch import Tensor, nn

from adapter_export.errors import DataError, UsageError
from adapter_export.format.tabular.labelled import Columns, labelled_rows
from adapter_export.format.tabular.training_tables import TaskFiles, read_tables
from adapter_export.graph.heads import HeadOptions, make_head
from adapter_export.graph.kinds import houlsby
from adapter_export.graph.tasks import Task
from adapter_export.graph.tasks.metrics import judge_retrieval
from adapter_export.reporting import Reporter
from adapter_export.text import Tokenizer
from adapter_export.torch_backend.attach import AdaptedModel, attach
from adapter_export.torch_backend.base.torch_base import TorchBase
from adapter_export.training.loop.data import TextSource, TrainingData
from adapter_export.training.loop.init_adapter import init_adapter
from adapter_export.training.loop.settings import LoopSpec
from adapter_export.training.loop.task_files import TextTask, read_task
from adapter_export.training.loop.train_loop import evaluate, train
from adapter_export.training.objectives import OBJECTIVES

OBJECTIVE = OBJECTIVES["retrieval"]
ROWS, FULL = 7, 12


class Given(nn.Module):
    """Given vectors, as the only module of a sentence-transformers model."""

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"sentence_embedding": features["vectors"]}

    def get_embedding_dimension(self) -> int:
        return FULL


def vectors(texts: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(texts).standard_normal((ROWS, texts, FULL))).requires_grad_()


def numbers(texts: int) -> Tensor:
    return torch.arange(ROWS * texts).reshape(ROWS, texts)


def mean_loss(found: Tensor, targets: Tensor, temperature: float = 0.05, widths: tuple[int, ...] = ()) -> Tensor:
    settings, task = LoopSpec(temperature=temperature), Task("embedding", widths=widths)
    total, count = OBJECTIVE.of(settings, task).loss(found, targets, None)
    return total / count


@pytest.mark.parametrize("texts", [2, 3, 4])
@pytest.mark.parametrize("temperature", [0.05, 0.5])
def test_the_loss_is_that_of_sentence_transformers(texts: int, temperature: float) -> None:
    """In float64, both sum the same terms in different orders: 1e-9 of values near 10."""
    own, theirs = vectors(texts), vectors(texts)
    loss = MultipleNegativesRankingLoss(SentenceTransformer(modules=[Given()]), scale=1 / temperature)
    wanted = loss([{"vectors": theirs[:, at]} for at in range(texts)], torch.zeros(ROWS))
    found = mean_loss(own, numbers(texts), temperature)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-9)
    found.backward()
    wanted.backward()
    torch.testing.assert_close(own.grad, theirs.grad, rtol=0, atol=1e-9)


@pytest.mark.parametrize("texts", [2, 4])
def test_widths_are_those_of_the_matryoshka_loss(texts: int) -> None:
    own, theirs, model = vectors(texts), vectors(texts), SentenceTransformer(modules=[Given()])
    loss = MatryoshkaLoss(model, MultipleNegativesRankingLoss(model, scale=20), [FULL, 8, 3])
    wanted = loss([{"vectors": theirs[:, at]} for at in range(texts)], torch.zeros(ROWS))
    found = mean_loss(own, numbers(texts), widths=(8, 3))
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-9)
    found.backward()
    wanted.backward()
    torch.testing.assert_close(own.grad, theirs.grad, rtol=0, atol=1e-9)


def test_more_rows_than_are_compared_at_a_time() -> None:
    """1,030 rows go through two blocks of cosines."""
    rng = np.random.default_rng(0)
    found = torch.from_numpy(rng.standard_normal((1030, 2, 4)))
    loss = MultipleNegativesRankingLoss(SentenceTransformer(modules=[Given()]), scale=20)
    wanted = loss.compute_loss_from_embeddings([found[:, 0], found[:, 1]], torch.zeros(1030))
    torch.testing.assert_close(mean_loss(found, torch.arange(2060).reshape(1030, 2)), wanted, rtol=0, atol=1e-9)


def test_false_negatives_do_not_count() -> None:
    """The loss of an anchor equals that of a batch without the other documents that belong to it."""
    found, targets = vectors(3).detach(), numbers(3)
    targets[3, 0] = targets[0, 0]  # one anchor with two positives,
    targets[5, 1] = targets[3, 1]  # the second of which is also that of another anchor,
    targets[6, 2] = targets[0, 1]  # the first a negative of another,
    targets[4, 1] = targets[0, 0]  # and a document that equals the anchor
    cosines = nn.functional.cosine_similarity(found[0, 0], found[:, 1:].transpose(0, 1).flatten(0, 1), dim=-1) / 0.05
    false = [ROWS * column + row for column, row in ((0, 3), (0, 5), (1, 6), (0, 4))]
    kept = [at for at in range(2 * ROWS) if at not in false]
    wanted = torch.logsumexp(cosines[kept], 0) - cosines[0]
    alone = mean_loss(found, targets) * ROWS
    others = 0.0
    for row in range(1, ROWS):
        at = [row, *(one for one in range(ROWS) if one != row)]
        others += _first(found[at], targets[at])
    torch.testing.assert_close(alone, wanted + others, rtol=0, atol=1e-9)
    assert not torch.isclose(mean_loss(found, numbers(3)) * ROWS, alone)


def _first(found: Tensor, targets: Tensor) -> Tensor:
    """Return the loss of the first row by definition: over documents that are not another positive of its anchor."""
    anchor, own = int(targets[0, 0]), int(targets[0, 1])
    positives = {int(one[1]) for one in targets if int(one[0]) == anchor} | {anchor}
    terms, right = [], None
    for column in (1, 2):
        for row in range(len(found)):
            cosine = nn.functional.cosine_similarity(found[0, 0], found[row, column], dim=-1) / 0.05
            if (row, column) == (0, 1):
                right = cosine
            if (row, column) == (0, 1) or int(targets[row, column]) not in positives:
                terms.append(cosine)
    assert right is not None
    assert own in positives
    return torch.logsumexp(torch.stack(terms), 0) - right


class TestMetrics:
    def test_retrieval_metrics_match_sentence_transformers(self) -> None:
        """Twelve anchors, three with two or three positives, and a negative in each row; 40 documents."""
        rng = np.random.default_rng(3)
        found = rng.standard_normal((16, 3, 5))
        anchors = [*range(12), 0, 0, 4, 7]
        texts = [(f"a{anchor}", f"p{row}", f"n{row % 9}") for row, anchor in enumerate(anchors)]
        first = {name: found[row, at] for row, own in reversed([*enumerate(texts)]) for at, name in enumerate(own)}
        judged = judge_retrieval(np.array([[first[name] for name in own] for own in texts]), texts)
        corpus = {name: name for own in texts for name in own[1:]}
        relevant: dict[str, set[str]] = {}
        for anchor, positive, _ in texts:
            relevant.setdefault(anchor, set()).add(positive)
        evaluator = InformationRetrievalEvaluator(
            {name: name for name in relevant},
            corpus,
            relevant,
            mrr_at_k=[len(corpus)],
            precision_recall_at_k=[1, 5, 10],
            write_csv=False,
        )
        scores = np.array([first[name] for name in relevant]) @ np.array([first[name] for name in corpus]).T
        unit = [np.linalg.norm([first[name] for name in names], axis=1) for names in (relevant, corpus)]
        ranked = [
            [{"corpus_id": name, "score": score} for name, score in zip(corpus, row, strict=True)]
            for row in scores / np.outer(*unit)
        ]
        wanted = evaluator.compute_metrics(ranked)
        values = dict(zip([one.name for one in judged.metrics], judged.measure(np.arange(judged.units)), strict=True))
        assert values["ndcg_at_10"] == pytest.approx(wanted["ndcg@k"][10])
        assert values["mrr"] == pytest.approx(wanted["mrr@k"][len(corpus)])
        for count in (1, 5, 10):
            assert values[f"recall_at_{count}"] == pytest.approx(wanted["recall@k"][count])
        assert judged.units == 12
        nearest = {
            anchor: max(row, key=lambda one: one["score"])["corpus_id"]
            for anchor, row in zip(relevant, ranked, strict=True)
        }
        assert judged.answers == tuple(nearest[anchor] for anchor, *_ in texts)

    def test_equal_vectors_have_the_worst_order(self) -> None:
        judged = judge_retrieval(np.ones((4, 2, 3)) / 3, [(f"a{row}", f"p{row}") for row in range(4)])
        assert judged.each["mrr"].tolist() == [0.25] * 4
        assert judged.each["recall_at_1"].tolist() == [0] * 4

    def test_a_document_that_equals_the_anchor_is_left_out(self) -> None:
        found = np.array([[[1, 0], [1, 0.1]], [[1, 0.1], [1, 0]], [[0, 1], [0, 1]]], np.float64)
        judged = judge_retrieval(found, [("a", "b"), ("b", "a"), ("c", "d")])
        assert judged.each["recall_at_1"].tolist() == [1, 1, 1]

    def test_a_single_document_ranks_nothing(self) -> None:
        with pytest.raises(DataError, match="nothing can be ranked"):
            judge_retrieval(np.ones((2, 2, 3)), [("a", "p"), ("b", "p")])


def rows(count: int = 56) -> list[dict[str, str]]:
    """Return anchors with three informative words, positives with the same ones, and negatives with two of them."""
    rng = np.random.default_rng(0)
    words = [*combinations([*GOOD, *BAD], 3)]

    def said(telling: Sequence[str]) -> str:
        return " ".join(rng.permutation([*telling, *rng.choice(OTHER, 3)]))

    found = []
    for at in rng.permutation(len(words))[:count]:
        own = words[at]
        one, two = rng.choice([word for word in (*GOOD, *BAD) if word not in own], 2, replace=False)
        texts = (own, own, (*own[:2], one), (own[0], two, own[2]))
        found.append(dict(zip(("anchor", "positive", "one", "two"), map(said, texts), strict=True)))
    return found


def read(base: TorchBase, folder: Path, negatives: tuple[str, ...] = (), count: int = 56) -> TextTask:
    path = folder / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, rows(count))), encoding="utf-8")
    columns = Columns("anchor", "positive", negatives=negatives)
    problem, columns = columns.read_as("embedding")
    assert base.tokenizer is not None
    source = TextSource(Tokenizer.from_json(base.tokenizer, 24), tuple(record.name for record in base.inputs))
    return read_task(read_tables(TaskFiles(path, 0.3, columns=columns, problem=problem)), source)


def model_for(base: TorchBase, task: Task) -> AdaptedModel:
    head = make_head(task, width=WIDTH, numbers=8, options=HeadOptions(projection=True, l2_normalise=True))
    adapter = init_adapter(houlsby().with_widths(b=4), sites_of(base), name="a", base=base.fingerprint, head=head)
    return attach(base, adapter, sites=sites_of(base))


@pytest.mark.parametrize("negatives", [(), ("one", "two")])
def test_pairs_are_learnt(negatives: tuple[str, ...], base: TorchBase, tmp_path: Path) -> None:
    found = read(base, tmp_path, negatives)
    model = model_for(base, Task("embedding", widths=(4,)))
    settings = LoopSpec(epochs=15, batch_size=8, learning_rate=0.03, patience=15)
    before = evaluate(model, found.validation, settings)
    result = train(model, TrainingData(found.training, found.validation), settings)
    best = result.best.validation
    assert best.decides == "ndcg_at_10"
    assert best.metrics["ndcg_at_10"] > before.metrics["ndcg_at_10"] + 0.2
    again = evaluate(model, found.validation, settings)
    assert again.metrics == best.metrics
    # training multiplies by packed weights, which sum in another order
    assert again.loss == pytest.approx(best.loss, rel=1e-5)


def test_parts_of_a_batch_are_compared_with_each_other(base: TorchBase, tmp_path: Path) -> None:
    """Four parts give the weights of whole batches.

    Different orders of summation differ in the last bits of float32, 6e-8 of values near 1, in each of ten steps of
    Adam,
    which divides by the size of small gradients: 1e-4.
    """
    found = read(base, tmp_path, ("one",))

    def run(parts: int) -> tuple[list[float], dict[str, Any]]:
        model = model_for(base, Task("embedding", widths=(4,)))
        settings = LoopSpec(epochs=2, batch_size=8, gradient_accumulation=parts, learning_rate=1e-3)
        result = train(model, TrainingData(found.training, found.validation), settings)
        return list(result.losses), dict(model.to_adapter().weights)

    losses, weights = run(4)
    others, wanted = run(1)
    np.testing.assert_allclose(losses, others, rtol=1e-5)
    for name, tensor in weights.items():
        np.testing.assert_allclose(tensor, wanted[name], atol=1e-4)


def test_an_interrupted_run_ends_with_the_same_bits(base: TorchBase, tmp_path: Path) -> None:
    found = read(base, tmp_path, ("one",))
    settings = LoopSpec(epochs=2, batch_size=8, checkpoint_steps=2, temperature=0.1)

    def run(folder: Path, reporter: Reporter) -> dict[str, Any]:
        folder.mkdir(exist_ok=True)
        model = model_for(base, Task("embedding"))
        data = TrainingData(found.training, found.validation)
        train(model, data, settings, reporter=reporter, checkpoints=folder)
        return dict(model.to_adapter().weights)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "stopped", Interrupt(5))
    resumed, whole = run(tmp_path / "stopped", Reporter()), run(tmp_path / "whole", Reporter())
    assert all(np.array_equal(resumed[name], whole[name]) for name in whole)


def test_rows_of_one_anchor_stay_together(base: TorchBase, tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    found = [{"anchor": f"film {GOOD[at % 4]}", "positive": f"play {BAD[at // 4]}"} for at in range(16)]
    path.write_text("\n".join(map(json.dumps, found)), encoding="utf-8")
    assert base.tokenizer is not None
    source = TextSource(Tokenizer.from_json(base.tokenizer, 24), tuple(record.name for record in base.inputs))
    files = TaskFiles(path, 0.3, columns=Columns("anchor", "positive"), problem="retrieval")
    task = read_task(read_tables(files), source)
    anchors = [{anchor for anchor, _ in part.texts} for part in (task.training, task.validation)]
    assert not anchors[0] & anchors[1]
    assert all(anchors)


class TestColumns:
    def check(self, problem: str, columns: Columns, message: str) -> None:
        with pytest.raises(UsageError, match=message):
            columns.check(problem)

    def test_conflicting_columns_are_refused(self) -> None:
        self.check("embedding", Columns(pair="p", label="x"), "reads single texts, not pairs")
        self.check("embedding", Columns(negatives=("n",)), "negatives need pairs")
        self.check("ranking", Columns(pair="p", label="x", negatives=("n",)), "have no labels")
        self.check("ranking", Columns(negatives=("n",)), "reads pairs of texts")
        self.check("single_label", Columns(pair="p", negatives=("n",)), "does not use negatives")
        self.check("embedding", Columns("a", "p", negatives=("p",)), "named twice")

    def test_a_ranking_of_negatives_has_a_row_for_each_document(self, tmp_path: Path) -> None:
        path = tmp_path / "rows.tsv"
        path.write_text("q\tp\tn1\tn2\nwhy\tso\tno\tnot\n", encoding="utf-8")
        found = labelled_rows(path, Columns("q", "p", negatives=("n1", "n2")), "ranking").rows
        assert [(row.text, row.pair, row.answer) for row in found] == [
            ("why", "so", 1.0),
            ("why", "no", 0.0),
            ("why", "not", 0.0),
        ]

    @pytest.mark.parametrize("problem", ["ranking", "retrieval"])
    def test_rows_that_cannot_be_used_are_named(self, problem: str, tmp_path: Path) -> None:
        path, columns = tmp_path / "rows.jsonl", Columns("q", "p", negatives=("n",))
        path.write_text('{"q": "a", "p": "b", "n": "c"}\n{"q": "a", "p": "b", "n": "b"}\n', encoding="utf-8")
        with pytest.raises(DataError, match="line 2: a positive is its own negative"):
            labelled_rows(path, columns, problem)
        path.write_text('{"q": "a", "p": "b", "n": "c"}\n{"q": "a", "p": "b", "n": " "}\n', encoding="utf-8")
        with pytest.raises(DataError, match="line 2"):
            labelled_rows(path, columns, problem)
        assert labelled_rows(path, columns, problem, skip_incomplete=True).incomplete == [2]
