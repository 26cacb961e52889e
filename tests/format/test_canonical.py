"""JSON: one way to write, and nothing read that is not JSON."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapter_export.errors import FileError, FormatError
from adapter_export.format.files import canonical_json
from adapter_export.safe_io.documents import parse_json, read_json

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner),
    max_leaves=20,
)


def test_canonical_json_has_one_layout() -> None:
    document = {"b": [1, 2.5, 1e-05, 100.0, True, None], "a": {"ü": "🙂\n"}, "Z": {}, "A": []}
    expected = """{
  "A": [],
  "Z": {},
  "a": {
    "ü": "🙂\\n"
  },
  "b": [
    1,
    2.5,
    1e-05,
    100.0,
    true,
    null
  ]
}
"""
    assert canonical_json(document).decode() == expected


@given(JSON)
def test_canonical_json_round_trips(document: object) -> None:
    data = canonical_json(document)
    again = parse_json(data, "test")
    assert again == document
    assert canonical_json(again) == data


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1, 2}, b"bytes", "\ud800", {"a": object()}])
def test_writer_refuses_values_without_json_equivalent(value: object) -> None:
    with pytest.raises(FormatError, match="no JSON equivalent"):
        canonical_json({"key": value})


HOSTILE = {
    "empty": (b"", "Expecting value"),
    "truncated": (b'{"a": [1, 2', "line 1, column"),
    "two documents": (b"{} {}", "Extra data"),
    "a key twice": (b'{"a": {"b": 1, "b": 1}}', "the key `b` in one object"),
    "NaN": (b'{"a": NaN}', "`NaN`"),
    "infinite": (b"[-Infinity]", "`-Infinity`"),
    "exceeds the range of float64": (b"[1e999]", "exceeds the range of float64"),
    "byte order mark": (b"\xef\xbb\xbf{}", "byte order mark"),
    "UTF-16": ('{"a": 1}'.encode("utf-16"), "codec can't decode"),
    "not UTF-8": (b'"\xff"', "codec can't decode"),
    "half of a surrogate pair": (b'"\\ud800"', "surrogates not allowed"),
    "nested too deeply": (b"[" * 200_000, "recursion"),
    "a number with too many digits": (b"1" * 5000, "4300"),
    "a comment": (b"{} // why", "Extra data"),
    "single quotes": (b"{'a': 1}", "double quotes"),
    "raw control character": (b'"a\nb"', "control character"),
}


@pytest.mark.parametrize(("data", "found"), HOSTILE.values(), ids=HOSTILE.keys())
def test_reader_refuses_invalid_json(data: bytes, found: str, tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    path.write_bytes(data)
    with pytest.raises(FormatError) as caught:
        read_json(path)
    assert found in str(caught.value)
    assert str(caught.value).startswith(str(path))
    assert caught.value.fix is not None


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileError):
        read_json(tmp_path / "nothing.json")
