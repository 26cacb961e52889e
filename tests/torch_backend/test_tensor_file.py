"""Files of `torch.save`: tensors by name are read like in torch, and nothing else is."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from adapter_export.errors import FileError, FormatError
from adapter_export.torch_backend.base.pickles import read_torch_file

LAYOUTS = (True, False)


def save(value: object, path: Path, zipped: bool) -> Path:
    torch.save(value, path, _use_new_zipfile_serialization=zipped)
    return path


@pytest.mark.parametrize("zipped", LAYOUTS)
def test_tensor_files_are_read_as_torch_reads_them(tmp_path: Path, zipped: bool) -> None:
    table = torch.randn(6, 8)
    tensors = {
        "whole": table,
        "transposed": table.t(),
        "a part, by steps": table[1:5:2, ::3],
        "double": torch.randn(2).double(),
        "half": torch.randn(3).half(),
        "long": torch.arange(5),
        "int": torch.arange(5, dtype=torch.int32),
        "bool": torch.tensor([True, False]),
        "one number": torch.tensor(3.0),
        "empty": torch.zeros(0, 3),
        "parameter": torch.nn.Parameter(torch.randn(2, 2)),
    }
    path = save(tensors, tmp_path / "a.bin", zipped)
    found, expected = read_torch_file(path), torch.load(path, weights_only=True)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.detach().numpy().dtype, name
        np.testing.assert_array_equal(found[name], tensor.detach().numpy(), err_msg=name)


@pytest.mark.parametrize("zipped", LAYOUTS)
def test_bfloat16_becomes_float32_without_loss(tmp_path: Path, zipped: bool) -> None:
    tensor = torch.randn(5, 7).bfloat16()
    found = read_torch_file(save({"a": tensor}, tmp_path / "a.bin", zipped))["a"]
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, tensor.float().numpy())


@pytest.mark.parametrize("zipped", LAYOUTS)
def test_a_state_dict_with_its_metadata_is_read(tmp_path: Path, zipped: bool) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    found = read_torch_file(save(module.state_dict(), tmp_path / "a.bin", zipped))
    assert list(found) == list(module.state_dict())


class Hostile:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("zipped", LAYOUTS)
def test_a_pickle_that_runs_code_is_refused_and_does_not_run(tmp_path: Path, zipped: bool) -> None:
    marker = tmp_path / "marker"
    path = save({"a": torch.zeros(1), "b": Hostile(marker)}, tmp_path / "a.bin", zipped)
    with pytest.raises(FormatError, match=r"could run code when loaded; found `.*mkdir"):
        read_torch_file(path)
    assert not marker.exists()


@pytest.mark.parametrize("zipped", LAYOUTS)
@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([torch.zeros(1)], "does not contain a dictionary of tensors"),
        ({"a": 3, "b": torch.zeros(1)}, "more than tensors by name; found `a`"),
        ({"a": {"b": torch.zeros(1)}}, "more than tensors by name; found `a`"),
        ({3: torch.zeros(1)}, "more than tensors by name; found `3`"),
        (torch.nn.Linear(2, 2), r"could run code.*`torch.nn.modules.linear.Linear`"),
        ({"a": torch.zeros(2).to_sparse()}, r"found `torch._utils._rebuild_sparse_tensor`"),
    ],
)
def test_files_without_named_tensors_are_refused(tmp_path: Path, zipped: bool, value: object, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        read_torch_file(save(value, tmp_path / "a.bin", zipped))


def _whole(zipped: bool) -> bytes:
    stream = io.BytesIO()
    torch.save({"a": torch.randn(40), "b": torch.randn(4, 4)}, stream, _use_new_zipfile_serialization=zipped)
    return stream.getvalue()


@pytest.mark.parametrize("zipped", LAYOUTS)
@pytest.mark.parametrize("part", [0.0, 0.02, 0.3, 0.6, 0.97])
def test_a_file_that_is_cut_off_is_named(tmp_path: Path, zipped: bool, part: float) -> None:
    data = _whole(zipped)
    path = tmp_path / "a.bin"
    path.write_bytes(data[: int(len(data) * part)])
    with pytest.raises(FormatError, match=r"a\.bin"):
        read_torch_file(path)


def rewritten(change: Callable[[str, bytes], bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(_whole(True))) as old, zipfile.ZipFile(stream, "w", compression) as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
    return stream.getvalue()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (rewritten(lambda name, data: data[:-4] if name.endswith("data/0") else data), "or it is damaged"),
        (rewritten(lambda name, data: data, zipfile.ZIP_DEFLATED), "is not an archive written by `torch.save`"),
        (rewritten(lambda name, data: b"\x80\x02K\x01." if name.endswith("pkl") else data), "not contain a dictionary"),
        (b"\x80\x02}q\x00X\x01\x00\x00\x00aq\x01K\x01s.", "not a file of `torch.save`"),
        (b"\x80\x02}q\x00(X\x01\x00\x00\x00ac__builtin__\neval\nu.", "found `__builtin__.eval`"),
        (b'{"json": 1}', "not a file of `torch.save`"),
    ],
)
def test_a_file_that_was_tampered_with_is_named(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(data)
    with pytest.raises(FormatError, match=message):
        read_torch_file(path)


def test_a_view_outside_of_its_numbers_is_refused(tmp_path: Path) -> None:
    """The offset of the 4 × 4 tensor is increased by one in the pickle: its last number would be past the end."""

    def shift(name: str, data: bytes) -> bytes:
        at = data.rindex(b"K\x00K\x04K\x04") if name.endswith("pkl") else 0
        return data[:at] + b"K\x01" + data[at + 2 :] if name.endswith("pkl") else data

    path = tmp_path / "a.bin"
    path.write_bytes(rewritten(shift))
    with pytest.raises(FormatError, match="or it is damaged"):
        read_torch_file(path)


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"none\.bin"):
        read_torch_file(tmp_path / "none.bin")


@pytest.mark.parametrize("zipped", LAYOUTS)
def test_damage_anywhere_is_a_named_error_or_another_tensor(tmp_path: Path, zipped: bool) -> None:
    random = np.random.default_rng(0)
    whole, path = _whole(zipped), tmp_path / "a.bin"
    refused = 0
    for _ in range(300):
        data = bytearray(whole)
        for at in random.integers(0, len(data), 3):
            data[at] = random.integers(256)
        path.write_bytes(bytes(data))
        try:
            found = read_torch_file(path)
        except FormatError:
            refused += 1
        else:
            assert all(isinstance(tensor, np.ndarray) for tensor in found.values())
    assert refused > 30


BOMB = b"\x80\x02}(" + b")" + b"q\x01h\x01\x86" * 60 + b"Nu."
"""A dictionary whose key is a tuple of twice the same tuple, nested 60 times: its hash takes 2⁶⁰ steps."""


@pytest.mark.parametrize(
    ("pickled", "found"),
    [
        (BOMB, "one tuple in two places"),
        (b"\x80\x02ccollections\nOrderedDict\n" + BOMB[3:-2] + b"\x85R.", "one tuple in two places"),
        (b"\x80\x02}(" + b")" + b"\x85" * 1_000_000 + b"Nu.", "tuples nested 9 deep"),
    ],
)
@pytest.mark.parametrize("zipped", LAYOUTS)
def test_keys_that_take_for_ever_to_hash_are_refused_before(
    tmp_path: Path, zipped: bool, pickled: bytes, found: str
) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(rewritten(lambda name, data: pickled if name.endswith("pkl") else data) if zipped else pickled)
    with pytest.raises(FormatError, match=found):
        read_torch_file(path)


@pytest.mark.parametrize("zipped", LAYOUTS)
def test_many_views_of_few_numbers_take_no_memory(tmp_path: Path, zipped: bool) -> None:
    """3,000 views of 4 MB would be 12 GB of arrays."""
    numbers = torch.zeros(1024, 1024)
    path = save({f"t{n}": numbers.view(-1) for n in range(3000)}, tmp_path / "a.bin", zipped)
    with pytest.raises(FormatError, match="many tensors that share few numbers; found 12582912000 bytes in a file of"):
        read_torch_file(path)
    path = save({"a": torch.zeros(1).expand(2**40)}, path, zipped)
    with pytest.raises(FormatError, match="many tensors that share few numbers"):
        read_torch_file(path)


@pytest.mark.parametrize("zipped", LAYOUTS)
def test_views_of_one_another_share_their_numbers(tmp_path: Path, zipped: bool) -> None:
    numbers = torch.arange(6.0)
    found = read_torch_file(save({"a": numbers, "b": numbers[2:]}, tmp_path / "a.bin", zipped))
    assert np.shares_memory(found["a"], found["b"])


def test_entries_that_are_larger_than_the_file_are_refused(tmp_path: Path) -> None:
    """Two entries of an archive may overlap in the file."""
    data = _whole(True)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        (entry,) = (entry for entry in archive.infolist() if entry.filename.endswith("data/0"))
    at = data.rindex(entry.filename.encode()) - 46
    path = tmp_path / "a.bin"
    path.write_bytes(data[: at + 20] + (2**31).to_bytes(4, "little") * 2 + data[at + 28 :])
    with pytest.raises(FormatError, match="entries larger than the file"):
        read_torch_file(path)
