"""The reader and the writer of golden batches."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from jsonschema import Draft202012Validator
from make_schemas import schema_text

from adapter_export.errors import FormatError, VersionError
from adapter_export.format.golden_batches import (
    GOLDEN_BATCHES_VERSION,
    GoldenBatch,
    GoldenBatches,
    GoldenBatchRow,
    golden_batches_json,
    parse_golden_batches,
)


def batches() -> GoldenBatches:
    base = GoldenBatchRow(None, {"ids": [5, 1, 2], "mask": [1, 1, 1]}, None, {"outputs": {"hidden": [0.5]}}, 1e-5)
    span = {"first_token": 1, "last_token": 1, "probability": 0.75}
    other = GoldenBatchRow("a", {"ids": [5, 1], "mask": [1, 1]}, (1, 2), span, 0.0, decided=False)
    return GoldenBatches(GOLDEN_BATCHES_VERSION, "torch 2.13.0 float32", (GoldenBatch("one", (base, other)),))


def test_written_golden_batches_are_read_back_unchanged() -> None:
    data = golden_batches_json(batches())
    found = parse_golden_batches(data, "b.json")
    assert golden_batches_json(found) == data
    row = found.batches[0].rows[1]
    assert row.context == (1, 2)
    np.testing.assert_array_equal(row.array("ids"), np.asarray([[5, 1]]))
    assert row.array("ids").dtype == np.int64
    assert list(Draft202012Validator(json.loads(schema_text("golden-batches"))).iter_errors(json.loads(data))) == []


def row_of(document: dict[str, Any]) -> Any:
    return document["batches"][0]["rows"][0]


BROKEN: dict[str, tuple[Callable[[dict[str, Any]], object], type[FormatError], str]] = {
    "newer version": (lambda d: d.update(version="2.0.0"), VersionError, "2.0.0"),
    "name twice": (lambda d: d["batches"].append(d["batches"][0]), FormatError, "`$.batches`: a name occurs twice"),
    "no batches": (lambda d: d.update(batches=[]), FormatError, "at least one value"),
    "no rows": (lambda d: d["batches"][0].update(rows=[]), FormatError, "at least one value"),
    "no answer": (lambda d: row_of(d).pop("answer"), FormatError, "no key `answer`"),
    "negative budget": (lambda d: row_of(d).update(absolute=-1.0), FormatError, "absolute"),
    "numbers with a fraction": (
        lambda d: row_of(d)["inputs"].update(ids=[0.5]),
        FormatError,
        "rows[0].inputs`: is not",
    ),
    "lists of different lengths": (lambda d: row_of(d)["inputs"].update(ids=[[1], [1, 2]]), FormatError, "found `ids`"),
    "a text": (lambda d: row_of(d)["inputs"].update(ids="1"), FormatError, "found `ids`"),
    "numbers beyond int64": (lambda d: row_of(d)["inputs"].update(ids=[2**64]), FormatError, "found `ids`"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_reader_refuses_malformed_golden_batches(name: str) -> None:
    change, kind, message = BROKEN[name]
    document = json.loads(golden_batches_json(batches()))
    change(document)
    with pytest.raises(kind) as caught:
        parse_golden_batches(json.dumps(document).encode(), "b.json")
    assert message in str(caught.value)
