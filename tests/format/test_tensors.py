"""Tensors: one layout, and a word for every file that is no safetensors file."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest

from adapter_export.errors import FileError, FormatError, TensorError, WriteError
from adapter_export.format.tensors import parse_tensors, read_tensors, tensor_bytes, write_tensors

TENSORS = {
    "b.9": np.array([1.5, -2.5], np.float32),
    "b.10": np.arange(6, dtype=np.float32).reshape(2, 3),
    "ids": np.array([[1, 2]], np.int64),
    "scalar": np.array(3.0, np.float32),
    "mask": np.array([True, False]),
}


def container(header: object, body: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


def tensor(dtype: str, shape: list[int], *offsets: int) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": list(offsets)}


def test_layout_is_that_of_the_specification() -> None:
    """Largest elements first, then by name; the header padded with spaces to a multiple of 8; no metadata."""
    data = tensor_bytes(TENSORS)
    length = int.from_bytes(data[:8], "little")
    assert length % 8 == 0
    assert data[8 : 8 + length].rstrip(b" ").decode() == (
        '{"ids":{"dtype":"I64","shape":[1,2],"data_offsets":[0,16]},'
        '"b.10":{"dtype":"F32","shape":[2,3],"data_offsets":[16,40]},'
        '"b.9":{"dtype":"F32","shape":[2],"data_offsets":[40,48]},'
        '"scalar":{"dtype":"F32","shape":[],"data_offsets":[48,52]},'
        '"mask":{"dtype":"BOOL","shape":[2],"data_offsets":[52,54]}}'
    )
    assert data[8 + length :] == b"".join(TENSORS[name].tobytes() for name in ("ids", "b.10", "b.9", "scalar", "mask"))


def test_order_of_the_names_does_not_matter() -> None:
    assert tensor_bytes(dict(reversed(TENSORS.items()))) == tensor_bytes(TENSORS)


def test_written_tensors_are_read_back_unchanged(tmp_path: Path) -> None:
    write_tensors(tmp_path / "t.safetensors", TENSORS)
    found = read_tensors(tmp_path / "t.safetensors")
    assert list(found) == sorted(TENSORS)
    for name, expected in TENSORS.items():
        assert found[name].dtype == expected.dtype
        assert found[name].shape == expected.shape
        np.testing.assert_array_equal(found[name], expected)


def test_transposed_views_are_written_in_their_visible_order() -> None:
    view = np.arange(6, dtype=np.float32).reshape(2, 3).T
    np.testing.assert_array_equal(parse_tensors(tensor_bytes({"a": view}), "test")["a"], view)


@pytest.mark.parametrize("dtype", [np.complex128, object, "U3", "datetime64[s]"])
def test_writer_refuses_types_that_safetensors_lacks(dtype: object) -> None:
    with pytest.raises(TensorError, match="`a` is "):
        tensor_bytes({"a": np.zeros(2, dtype)})


def zip_bytes() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("archive/data.pkl", b"")
    return stream.getvalue()


def npy_bytes() -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.zeros(4))
    return stream.getvalue()


WHOLE = tensor_bytes(TENSORS)
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"
ONE = {"a": tensor("F32", [1], 0, 4)}
TWICE = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
HOSTILE = {
    "empty": (b"", "0 bytes"),
    "shorter than a header's length": (b"\x08\x00", "2 bytes"),
    "truncated in the header": (WHOLE[:40], "is truncated"),
    "truncated in the tensors": (WHOLE[:-1], "not fully covered"),
    "bytes left over": (WHOLE + b"\x00", "not fully covered"),
    "a header of 2^63 bytes": ((2**63).to_bytes(8, "little") + b"{", "is truncated"),
    "Git LFS pointer": (LFS, "git lfs pull"),
    "zip": (zip_bytes(), "is a zip archive"),
    "pickle": (b"\x80\x04\x95\x0a\x00\x00\x00\x00\x00\x00\x00}\x94.", "is a pickle"),
    "NumPy": (npy_bytes(), "is a NumPy file"),
    "HDF5": (b"\x89HDF\r\n\x1a\n" + bytes(32), "is an HDF5 file"),
    "web page": (b"<!DOCTYPE html><html>Not found</html>", "start with"),
    "header is no object": (container(b"[1, 2]"), "start with"),
    "header is no JSON": (container(b"{nonsense"), "is not valid JSON"),
    "a name twice": (container(TWICE, b"0000"), "the key `a` in one object"),
    "unknown type": (container({"a": tensor("Q9", [1], 0, 4)}, b"0000"), "`a` is Q9"),
    "type is no text": (container({"a": {**ONE["a"], "dtype": ["F32"]}}, b"0000"), "`a` is ['F32']"),
    "bfloat16": (container({"a": tensor("BF16", [2], 0, 4)}, b"0000"), "`a` is BF16"),
    "two tensors on the same bytes": (container({**ONE, "b": ONE["a"]}, b"0000"), "invalid offset"),
    "offsets outside": (container({"a": tensor("F32", [2], 0, 8)}, b"0000"), "not fully covered"),
    "shape and offsets differ": (container({"a": tensor("F32", [3], 0, 4)}, b"0000"), "not a valid safetensors"),
    "negative length": (container({"a": tensor("F32", [-1], 0, 4)}, b"0000"), "not a valid safetensors"),
    "record is no object": (container({"a": 3}), "not a valid safetensors"),
}


@pytest.mark.parametrize(("data", "found"), HOSTILE.values(), ids=HOSTILE.keys())
def test_reader_refuses_invalid_safetensors_files(data: bytes, found: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(data)
    with pytest.raises(FormatError) as caught:
        read_tensors(path)
    assert found in str(caught.value)
    assert str(caught.value).startswith(str(path))


def test_files_that_would_take_long_or_cannot_be_held_are_refused() -> None:
    with pytest.raises(TensorError, match="too many axes; found `t` with 70"):
        parse_tensors(container({"t": tensor("F32", [1] * 70, 0, 4)}, bytes(4)), "x")
    with pytest.raises(TensorError, match="too many tensors; found 100,001"):
        parse_tensors(container({f"t{number}": tensor("F32", [0], 0, 0) for number in range(100_001)}), "x")


def test_tensors_that_are_read_can_be_changed() -> None:
    """torch warns about arrays that it may not write to."""
    assert all(tensor.flags.writeable for tensor in parse_tensors(WHOLE, "test").values())


def test_missing_files_and_places_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileError):
        read_tensors(tmp_path / "nothing.safetensors")
    with pytest.raises(WriteError):
        write_tensors(tmp_path / "nowhere/t.safetensors", TENSORS)


def test_bfloat16_is_widened_if_asked_for(tmp_path: Path) -> None:
    numbers = [1.0, -0.15625, 3.0e38, 2.0**-130]
    bits = (np.array(numbers, "<f4").view("<u4") >> 16).astype("<u2").tobytes()
    header = json.dumps({"a": {"dtype": "BF16", "shape": [2, 2], "data_offsets": [0, 8]}}).encode()
    path = tmp_path / "a.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bits)
    found = read_tensors(path, widen=True)["a"]
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found.ravel(), (np.array(numbers, "<f4").view("<u4") & 0xFFFF0000).view("<f4"))
    with pytest.raises(TensorError, match="`a` is BF16"):
        read_tensors(path)
