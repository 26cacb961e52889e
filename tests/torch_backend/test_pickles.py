"""Imports of a pickle are read without unpickling it."""

from __future__ import annotations

import collections
import io
from pathlib import Path

import pytest
import torch
from archives import Small, pickle_that_makes

from adapter_export.torch_backend.base.pickles import foreign_globals


def saved(value: object, protocol: int = 2) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, pickle_protocol=protocol)
    return buffer.getvalue()


PLAIN = {
    "tensors": ((torch.ones(2), {"a": torch.zeros(3, dtype=torch.int64)}),),
    "state dict": (Small().state_dict(),),
    "parameter": (torch.nn.Parameter(torch.ones(2)),),
    "types": (torch.float16, torch.bfloat16, collections.OrderedDict(a=1)),
}


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("name", PLAIN)
def test_plain_tensors_have_no_foreign_globals(name: str, protocol: int) -> None:
    assert foreign_globals(saved(PLAIN[name], protocol)) == set()


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_pickled_modules_name_their_class(protocol: int) -> None:
    assert "archives.Small" in foreign_globals(saved(Small(), protocol))


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b"cos\nsystem\n(S'true'\ntR.", "os.system"),
        (b"(S'true'\nios\nsystem\n.", "os.system"),
        (b"\x80\x04\x8c\x02os\x94\x8c\x06system\x94\x93.", "os.system"),
        (b"\x80\x04\x8c\x02os\x94\x8c\x06system\x940h\x00h\x01\x93.", "os.system"),
        (b"\x80\x04\x8c\x05torch\x94\x8c\x06Tensor\x94\x8c\x02os\x94\x8c\x06system\x94h\x02h\x03\x93.", "os.system"),
        (b"\x80\x02\x82\x01.", "?"),
    ],
)
def test_foreign_globals_are_found_behind_every_opcode(data: bytes, name: str) -> None:
    assert name in foreign_globals(data)


@pytest.mark.parametrize("data", [b"hello", b"PK\x03\x04", b"\x80\x02", b"\xff"])
def test_invalid_pickles_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        foreign_globals(data)


def test_reading_globals_runs_no_code(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    assert foreign_globals(pickle_that_makes(marker)) == {"os.mkdir"}
    assert not marker.exists()
