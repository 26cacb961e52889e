"""The real base as its makers publish it: the cosines of its own vectors, measured on pairs of graded likeness."""

from __future__ import annotations

from pathlib import Path

from answering import write

import adapter_export as ae

PAIRS = (
    ("A man is playing a guitar.", "A man plays the guitar.", 5.0),
    ("The cat sits on the mat.", "A cat is sitting on a mat.", 4.9),
    ("She bought a new car yesterday.", "Yesterday she purchased a new automobile.", 4.7),
    ("The stock market fell sharply today.", "Shares dropped steeply on the exchange today.", 4.3),
    ("A woman is slicing an onion.", "A person is cutting vegetables.", 3.2),
    ("Children are playing football in the park.", "Kids are outside in a garden.", 2.6),
    ("The train to Berlin leaves at noon.", "The bus to Munich leaves in the evening.", 2.2),
    ("A dog runs across the field.", "A horse stands in a stable.", 1.2),
    ("He is reading a book about history.", "The soup needs more salt.", 0.2),
    ("The moon orbits the earth.", "My shoes are too small for me.", 0.0),
)


def test_the_vectors_of_the_base_order_pairs_as_people_do(minilm_archive: Path, tmp_path: Path) -> None:
    base = ae.open_base(minilm_archive)
    bundle = ae.build(base, (), tmp_path / "bundle", variants=("slots",))
    rows = [{"text": one, "other": two, "score": score} for one, two, score in PAIRS]
    data = write(tmp_path / "pairs.jsonl", rows)
    found = ae.evaluate(bundle, data, pair="other", label="score", resamples=50, against=base, gate={"spearman": 0.85})
    found.raise_for_failure()
    assert (found.adapter, found.task) == ("base-head", "embedding")
    assert found.versus is not None
    assert found.versus.differing == ()
    assert found.versus.largest < 1e-5
    reversed_rows = [{**row, "score": 5.0 - row["score"]} for row in rows]
    upside_down = ae.evaluate(
        bundle, write(tmp_path / "reversed.jsonl", reversed_rows), pair="other", label="score", resamples=0
    )
    assert upside_down.scores["spearman"].value == -(found.scores["spearman"].value or 0)
