"""Bundles of embedders, measured on anchors and their documents: each anchor ranks all documents of the table."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from once import once
from small_encoder import BAD, GOOD, OTHER, load_encoder

import adapter_export as ae
from adapter_export.errors import RequestError, UsageError
from adapter_export.runtime import Bundle

COLUMNS = {"text": "query", "pair": "passage"}


def rows() -> list[dict[str, str]]:
    """Three telling words in each query and its passage, two of them in the passage that does not belong to it."""
    rng = np.random.default_rng(0)
    found = []
    for own in combinations([*GOOD, *BAD], 3):
        other = rng.choice([word for word in (*GOOD, *BAD) if word not in own])
        texts = [" ".join(rng.permutation([*words, *rng.choice(OTHER, 3)])) for words in (own, own, (*own[:2], other))]
        found.append(dict(zip(("query", "passage", "wrong"), texts, strict=True)))
    return [found[at] for at in rng.permutation(len(found))]


@pytest.fixture(scope="session")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`train.jsonl`, `test.jsonl`, and `bundle` with `search`, which was tested on the latter."""

    def make(folder: Path) -> None:
        load_encoder(folder / "model.pt")
        for name, part in (("train", rows()[16:]), ("test", rows()[:16])):
            (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, part)), encoding="utf-8")
        adapter = ae.train(
            folder / "model.pt",
            folder / "train.jsonl",
            folder / "search",
            task="embedding",
            **COLUMNS,
            negative=["wrong"],
            test_data=folder / "test.jsonl",
            widths=(8, 4),
            l2_normalise=True,
            bottleneck=4,
            epochs=3,
            batch_size=8,
            learning_rate=0.03,
        )
        ae.build(folder / "model.pt", [adapter], folder / "bundle")

    return once(tmp_path_factory, "searched", make)


def test_an_evaluation_confirms_the_training_record(searched: Path) -> None:
    found = ae.evaluate(searched / "bundle", searched / "test.jsonl", **COLUMNS, negative=["wrong"], resamples=50)
    record = found.training_record
    assert record is not None
    assert record.passed
    assert set(record.scores) == {"ndcg_at_10", "mrr", "recall_at_1", "recall_at_5", "recall_at_10"}
    assert (found.task, found.rows, found.metrics[0].name) == ("embedding", 16, "ndcg_at_10")
    interval = found.scores["recall_at_1"]
    assert interval.low is not None
    assert interval.high is not None
    assert interval.low < interval.value < interval.high
    assert "over anchors" in "".join(found.remarks())


def test_the_metrics_by_hand(searched: Path) -> None:
    """Ranks from vectors that the session gives; the documents are all passages, and with `wrong` those as well."""
    test = rows()[:16]
    texts = Bundle.open(searched / "bundle").texts()
    for negatives in ([], ["wrong"]):
        documents = list(dict.fromkeys(row[name] for name in ("passage", *negatives) for row in test))
        queries, known = (
            np.stack([one.answer.vector for one in texts.answer(asked, "search")])
            for asked in ([row["query"] for row in test], documents)
        )
        ranked = (-(queries @ known.T)).argsort(-1)
        ranks = [
            list(order).index(documents.index(row["passage"])) + 1 for order, row in zip(ranked, test, strict=True)
        ]
        found = ae.evaluate(searched / "bundle", searched / "test.jsonl", **COLUMNS, negative=negatives, resamples=0)
        values = {name: score.value for name, score in found.scores.items()}
        assert values["mrr"] == pytest.approx(np.mean(1 / np.array(ranks)))
        assert values["recall_at_5"] == np.mean(np.array(ranks) <= 5)
        gains = [1 / np.log2(rank + 1) if rank <= 10 else 0 for rank in ranks]
        assert values["ndcg_at_10"] == pytest.approx(np.mean(gains))


def test_vectors_of_another_width_are_measured(searched: Path) -> None:
    test, texts = rows()[:16], Bundle.open(searched / "bundle").texts()
    queries, known = (
        np.stack([one.answer.vector[:4] for one in texts.answer([row[name] for row in test], "search")])
        for name in ("query", "passage")
    )
    cosines = queries @ known.T / np.linalg.norm(known, axis=1)
    found = ae.evaluate(searched / "bundle", searched / "test.jsonl", **COLUMNS, dimensions=4, resamples=0)
    assert found.scores["recall_at_1"].value == np.mean(cosines.argmax(-1) == np.arange(16))
    assert found.training_record is None
    with pytest.raises(RequestError, match="not trained at this width; found 5; expected one of 16, 8, 4"):
        ae.evaluate(searched / "bundle", searched / "test.jsonl", **COLUMNS, dimensions=5)


def test_training_rows_are_named(searched: Path) -> None:
    found = ae.evaluate(searched / "bundle", searched / "train.jsonl", **COLUMNS, resamples=0)
    assert found.seen is not None
    assert found.seen.is_training


def test_contestants_are_compared_on_pairs(searched: Path) -> None:
    """The bundle, and the adapter that it was built of."""
    found = ae.compare(
        searched / "bundle",
        searched / "search",
        data=searched / "test.jsonl",
        base=searched / "model.pt",
        **COLUMNS,
        rounds=0,
        resamples=20,
    )
    one, other = (dict(each.scores) for each in found.contestants)
    assert one["ndcg_at_10"].value == pytest.approx(other["ndcg_at_10"].value)
    assert found.metrics[0].name == "ndcg_at_10"


def test_wrong_calls_are_named(searched: Path) -> None:
    bundle, data = searched / "bundle", searched / "test.jsonl"
    with pytest.raises(UsageError, match="negatives belong to pairs"):
        ae.evaluate(bundle, data, text="query", negative=["wrong"])
    with pytest.raises(UsageError, match="is no metric of this task"):
        ae.evaluate(bundle, data, **COLUMNS, gate={"spearman": 0.5})
