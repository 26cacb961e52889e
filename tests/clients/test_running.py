"""Every client runs adapters, each row of a batch through its own, and loads another while it runs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clients import CLIENTS, Client

from adapter_export.graph.tasks.answers import Prediction
from adapter_export.runtime import Bundle, Session

CLOSE = 1e-5
"""Probabilities in float32, from numbers that are some ulp apart."""

pytestmark = pytest.mark.parametrize("client", CLIENTS, indirect=True)

Arrays = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def session(small_bundle: Path) -> Session:
    return Bundle.open(small_bundle).session(threads=1)


def _arrays(path: Path) -> Arrays:
    return {name: np.array(rows, np.int64) for name, rows in json.loads(path.read_text()).items()}


def _row(inputs: Arrays, row: int) -> Arrays:
    return {name: array[row : row + 1] for name, array in inputs.items()}


def _holds(answer: Mapping[str, Any], expected: Prediction) -> None:
    found = {key: value for key, value in answer.items() if key != "adapter"}
    assert found.pop("task") == "single_label"
    assert found.pop("probabilities") == pytest.approx(dict(expected.probabilities), abs=CLOSE)
    assert found == {"label": expected.label, "probability": pytest.approx(expected.probability, abs=CLOSE)}


def test_rows_of_a_mixed_batch_equal_single_runs(
    client: Client, small_bundle: Path, three_rows: Path, session: Session
) -> None:
    """Each row equals its single run; the second one has no adapter."""
    inputs = _arrays(three_rows)
    choices = ["--adapter", "tone", "--adapter", "-", "--adapter", "topic"]
    tone, base, topic = client.run(small_bundle, three_rows, *choices)
    assert [tone["adapter"], base["adapter"], topic["adapter"]] == ["tone", None, "topic"]
    _holds(tone, session.classify(_row(inputs, 0), "tone")[0])
    _holds(topic, session.classify(_row(inputs, 2), "topic")[0])
    np.testing.assert_allclose(base["outputs"]["hidden"], session.run(_row(inputs, 1))["hidden"][0], rtol=0, atol=CLOSE)


def test_weights_of_a_fusion_can_be_overridden(
    client: Client, small_bundle: Path, three_rows: Path, session: Session
) -> None:
    """A fusion with other weights is the one that was made with them."""
    weights = ["--weights", "tone=0.25,mood=1.5"]
    rows = client.run(small_bundle, three_rows, "--adapter", "fusion", *weights)
    for row, expected in zip(rows, session.classify(_arrays(three_rows), "fixed"), strict=True):
        _holds(row, expected)
    client.refuses("finite weight for each", "run", small_bundle, "--inputs", three_rows, *_other("fusion", "tone=1"))
    client.refuses("no weights that a call", "run", small_bundle, "--inputs", three_rows, *_other("tone", "tone=1"))


def _other(adapter: str, weights: str) -> list[str]:
    return ["--adapter", adapter, "--weights", weights]


def test_strength_scales_the_adapter_of_each_row(
    client: Client, small_bundle: Path, three_rows: Path, session: Session
) -> None:
    """A row at a strength of its own, also below 0; at 0 there is the base, and the head."""
    names, strengths = ["tone", "topic", "tone"], [0.5, -1.0, 0.0]
    words = [word for name in names for word in ("--adapter", name)]
    words += [word for strength in strengths for word in ("--strength", f"{strength:g}")]
    rows = client.run(small_bundle, three_rows, *words)
    expected = session.classify(_arrays(three_rows), adapters=names, strength=strengths)
    for row, name, one, whole in zip(
        rows, names, expected, session.classify(_arrays(three_rows), adapters=names), strict=True
    ):
        assert row["adapter"] == name
        _holds(row, one)
        assert abs(one.probability - whole.probability) > 100 * CLOSE
    wrong = ["--adapter", "tone", "--strength", "1001"]
    client.refuses("`strength`: is no strength", "run", small_bundle, "--inputs", three_rows, *wrong)


def test_an_adapter_that_is_loaded_runs_on_one_token(
    client: Client, small_bundle: Path, session: Session, tmp_path: Path
) -> None:
    """Without a task, results are returned unchanged."""
    path = tmp_path / "token.json"
    path.write_text(json.dumps({"input_ids": [[5]], "attention_mask": [[1]]}))
    file = small_bundle / "adapters" / "tone.onnx_adapter"
    (row,) = client.run(small_bundle, path, "--load", f"new={file}", "--adapter", "new")
    expected = session.run(_arrays(path), "tone")
    assert set(row["outputs"]) == {"hidden", "logits"}
    for name, found in row["outputs"].items():
        np.testing.assert_allclose(found, expected[name][0], rtol=0, atol=CLOSE)


def test_clients_verify_a_bundle_without_adapters(client: Client, damaged_bundle: Path) -> None:
    """A base without adapters is a bundle, too."""
    path = damaged_bundle / "manifest.json"
    document = json.loads(path.read_text())
    kept = {"slots": document["graphs"]["slots"], "inputs": document["graphs"]["inputs"]}
    del document["checksum"]
    document.update(adapters=[], bank=None, fanout=None, graphs=kept, text=None, derivation=None)
    document.update(golden_texts=None, golden_batches=None)
    recorded = document["golden"]["recorded"]
    document["golden"]["recorded"] = {graph: digest for graph, digest in recorded.items() if graph in kept}
    used = {*kept.values(), document["golden"]["path"], "base.bin"}
    for file in document["files"]:
        if file["path"] not in used:
            (damaged_bundle / file["path"]).unlink()
    document["files"] = [file for file in document["files"] if file["path"] in used]
    path.write_text(json.dumps(document))
    variants = client.variants & {"slots", "slots, fed", "inputs"}
    found = {(each["variant"], each["adapter"]) for each in client.verify(damaged_bundle)}
    assert found - {("recorded", None)} == {(variant, None) for variant in variants}
