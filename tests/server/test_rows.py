"""A row has the result of its single run: padded, batched, with weights, on a base that counts padding."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clients import alike
from starlette.testclient import TestClient

from adapter_export.runtime import Bundle, Session

ROWS = ([2, 5, 3], [2, 7, 9, 12, 3], [2, 6, 3], [2, 4, 8, 15, 11, 9, 3])
ADAPTERS = ("tone", "topic", "fused", "mood")
OTHER = {"topic": 2.0, "tone": -0.5}
TEXTS = ("good", "who wrote it ? a book and the film .", "", "moon and a book")


@pytest.fixture(scope="module")
def session(counted: Path) -> Session:
    return Bundle.open(counted).session()


def _alone(session: Session, row: Sequence[int], adapter: str | None, **choice: Any) -> dict[str, np.ndarray]:
    """Return the graph's result for a single row without padding."""
    ids = np.array([row])
    found = session.run({"input_ids": ids, "attention_mask": np.ones_like(ids)}, adapter, **choice)
    return {name: array[0] for name, array in found.items()}


def _padded(side: str) -> dict[str, list[list[int]]]:
    """The rows, padded to the longest."""
    longest = max(map(len, ROWS))

    def filled(row: Sequence[int], pad: int) -> list[int]:
        padding = [pad] * (longest - len(row))
        return [*padding, *row] if side == "left" else [*row, *padding]

    ids = [filled(row, 1) for row in ROWS]
    return {"input_ids": ids, "attention_mask": [filled([1] * len(row), 0) for row in ROWS]}


def _ragged() -> dict[str, list[list[int]]]:
    return {"input_ids": [*map(list, ROWS)], "attention_mask": [[1] * len(row) for row in ROWS]}


def _inputs(side: str) -> dict[str, list[list[int]]]:
    return _ragged() if side == "none" else _padded(side)


def _rows(client: TestClient, path: str, **call: Any) -> list[dict[str, Any]]:
    answer = client.post(path, json=call)
    assert answer.status_code == 200, answer.text
    rows: list[dict[str, Any]] = answer.json()["rows"]
    return rows


@pytest.mark.parametrize("side", ["none", "right", "left"])
def test_padding_changes_no_answer_and_no_output(counting: TestClient, session: Session, side: str) -> None:
    inputs = _inputs(side)
    for row, one, name in zip(
        ROWS, _rows(counting, "/answer", inputs=inputs, adapters=ADAPTERS), ADAPTERS, strict=True
    ):
        logits = _alone(session, row, name)["logits"].astype(np.float64)
        shares = np.exp(logits) / np.exp(logits).sum()
        assert (one["adapter"], one["task"]) == (name, "single_label")
        np.testing.assert_allclose([*one["probabilities"].values()], shares, atol=1e-5)
    adapters = [None, *ADAPTERS[1:]]
    for at, one in enumerate(_rows(counting, "/run", inputs=inputs, adapters=adapters)):
        expected = _alone(session, ROWS[at], adapters[at])
        assert (one["adapter"], one["task"], set(one["outputs"])) == (adapters[at], None, set(expected))
        alike(_without(one["outputs"], inputs["attention_mask"][at]), {k: v.tolist() for k, v in expected.items()})


def _without(outputs: Mapping[str, Any], mask: Sequence[int]) -> dict[str, Any]:
    """Return outputs without the values at padding."""
    return {
        name: [one for one, real in zip(rows, mask, strict=True) if real] if name == "hidden" else rows
        for name, rows in outputs.items()
    }


@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_changes_no_tensor(counting: TestClient, session: Session, side: str) -> None:
    """In the Open Inference Protocol, outputs keep the shape of the inputs, with 0 for padding."""
    padded = {name: np.array(rows) for name, rows in _padded(side).items()}
    for model, output in (("tone", "logits"), ("counted", "hidden")):
        found = _infer(counting, model, padded)[output]
        for row, one, mask in zip(ROWS, found, padded["attention_mask"], strict=True):
            expected = _alone(session, row, None if model == "counted" else model)[output]
            np.testing.assert_allclose(one[mask == 1] if output == "hidden" else one, expected, atol=1e-5)
            assert output == "logits" or not one[mask == 0].any()


def _infer(
    client: TestClient, model: str, tensors: Mapping[str, np.ndarray], **parameters: Any
) -> dict[str, np.ndarray]:
    inputs = [
        {"name": name, "shape": array.shape, "datatype": "INT64", "data": array.ravel().tolist()}
        for name, array in tensors.items()
    ]
    answer = client.post(f"/v2/models/{model}/infer", json={"inputs": inputs, "parameters": parameters})
    assert answer.status_code == 200, answer.text
    return {one["name"]: np.array(one["data"]).reshape(one["shape"]) for one in answer.json()["outputs"]}


def test_texts_of_any_length_share_a_request(counting: TestClient, counted: Path) -> None:
    """Each equals its single answer, including an empty one and the parts of a mixed request."""
    reader = Bundle.open(counted).texts()
    found = _rows(counting, "/answer", texts=TEXTS, adapters=ADAPTERS)
    for one, text, name in zip(found, TEXTS, ADAPTERS, strict=True):
        alike(one, {"adapter": name, "task": "single_label", **reader.answer([text], name)[0].document()})


def test_weights_of_a_fusion_are_those_of_each_row(counting: TestClient, session: Session, counted: Path) -> None:
    own, other = (_alone(session, ROWS[1], "fused", weights=one) for one in ({"topic": 0.25, "tone": 0.75}, OTHER))
    assert np.abs(own["hidden"] - other["hidden"]).max() > 0.01
    inputs = {name: [rows[1], rows[1], rows[2]] for name, rows in _ragged().items()}
    call = {"inputs": inputs, "adapters": ["fused", "fused", "tone"], "weights": [None, OTHER, None]}
    first, second, third = _rows(counting, "/run", **call)
    alone = _alone(session, ROWS[2], "tone")
    for one, expected in ((first, own), (second, other), (third, alone)):
        alike(one["outputs"], {name: array.tolist() for name, array in expected.items()})
    (answer,) = _rows(counting, "/answer", text=TEXTS[1], adapter="fused", weights=OTHER)
    expected = Bundle.open(counted).texts().answer([TEXTS[1]], "fused", weights=OTHER)[0].document()
    alike(answer, {"adapter": "fused", "task": "single_label", **expected})
    ids = np.array([ROWS[1]])
    tensors = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    np.testing.assert_allclose(
        _infer(counting, "fused", tensors, weights=OTHER)["logits"][0], other["logits"], atol=1e-5
    )


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ({"adapter": "fused", "weights": {"topic": 1.0}}, "a finite weight for each of its members"),
        ({"adapter": "fused", "weights": [OTHER]}, "found 1; expected 2"),
        ({"adapter": "fused", "weights": OTHER, "strength": 0.5}, "strengths of a fusion's members"),
        ({"adapter": "tone", "weights": OTHER}, "has no weights"),
        ({"adapter": "base", "weights": OTHER}, "weights are those of a fusion's members"),
        ({"adapter": "fused", "weights": {"topic": "1", "tone": 1}}, "weights.topic"),
        ({"adapter": "tone", "context": [[1], [1]]}, "`context` needs `inputs`"),
    ],
)
def test_invalid_weights_are_refused(counting: TestClient, call: dict[str, Any], words: str) -> None:
    answer = counting.post("/answer", json={"texts": ["moon", "good"], **call})
    assert answer.status_code == 400, answer.text
    assert words in answer.json()["error"]


def test_an_invalid_row_is_named(counting: TestClient) -> None:
    answer = counting.post("/answer", json={"texts": ["moon", "a\0b"], "adapter": "tone"})
    assert (answer.status_code, "text 1" in answer.json()["error"]) == (400, True)


def test_answers_by_the_protocol_are_those_of_the_plain_api(counting: TestClient) -> None:
    texts = {"name": "text", "shape": [4], "datatype": "BYTES", "data": list(TEXTS)}
    expected = _rows(counting, "/answer", texts=TEXTS, adapter="fused", weights=OTHER)
    for weights in (OTHER, json.dumps(OTHER)):  # some clients can only send text parameters
        call = {"inputs": [texts], "parameters": {"weights": weights}}
        answer = counting.post("/v2/models/fused/infer", json=call).json()
        found = next(one["data"] for one in answer["outputs"] if one["name"] == "answer")
        alike([json.loads(one) for one in found], expected)
    for wrong in ("1", "{", [OTHER], {"topic": "2", "tone": 1}):
        call = {"inputs": [texts], "parameters": {"weights": wrong}}
        assert counting.post("/v2/models/fused/infer", json=call).status_code == 400
