"""Archives of other torch releases: the oldest and the newest, and with fields of an even newer one."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from dataclasses import make_dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from archives import CONSTANTS, PROGRAM, WEIGHTS, Entries, edit, read_entries, save_plainly, write_entries
from small_encoder import Encoder
from torch._export.serde import schema

from adapter_export.errors import UnknownFieldError, UnsafeArchiveError
from adapter_export.torch_backend.base.program_file import NEWEST
from adapter_export.torch_backend.base.torch_base import load_base

ARCHIVES = sorted((Path(__file__).parents[1] / "fixtures" / "archives").glob("torch-*.pt2.gz"))
INSTALLED = torch.__version__.partition("+")[0]

Change = Callable[[Any], object]


def unpacked(archive: Path, folder: Path) -> Path:
    path = folder / archive.stem
    path.write_bytes(gzip.decompress(archive.read_bytes()))
    return path


def test_oldest_and_newest_torch_have_test_archives() -> None:
    found = [archive.name.removeprefix("torch-").rpartition(".pt2")[0] for archive in ARCHIVES]
    assert any(name.startswith(NEWEST) for name in found)
    assert any(name.startswith("2.9") for name in found)


@pytest.mark.parametrize("archive", ARCHIVES, ids=lambda path: path.stem)
def test_an_archive_of_another_torch_computes_what_its_module_does(archive: Path, tmp_path: Path) -> None:
    base = load_base(unpacked(archive, tmp_path))
    module = Encoder(layers=1).eval()
    module.load_state_dict(base.program.state_dict)
    ids, mask = torch.randint(20, (3, 7)), torch.ones(3, 7, dtype=torch.int64)
    mask[0, 4:] = 0
    expected = module(ids, mask)
    found = base.run({"input_ids": ids, "attention_mask": mask})
    assert found.keys() == expected.keys() == {"hidden", "pooled"}
    assert {record.name: record.axes for record in base.inputs}["input_ids"] == ("batch", "sequence")
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("archive") / "small.pt2"
    save_plainly(path)
    return path


@pytest.fixture
def entries(archive: Path) -> Entries:
    return read_entries(archive)


def first_node(document: Any) -> Any:
    return document["graph_module"]["graph"]["nodes"][0]


def first_value(document: Any) -> Any:
    return next(iter(document["graph_module"]["graph"]["tensor_values"].values()))


def bias(document: Any) -> Any:
    return document["config"]["linear.bias"]


PLACES: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "program": (PROGRAM, lambda document: document),
    "node": (PROGRAM, first_node),
    "argument": (PROGRAM, lambda document: first_node(document)["inputs"][0]),
    "value": (PROGRAM, first_value),
    "signature": (PROGRAM, lambda document: document["graph_module"]["signature"]),
    "weight": (WEIGHTS, bias),
    "type of a weight": (WEIGHTS, lambda document: bias(document)["tensor_meta"]),
    "weights": (WEIGHTS, lambda document: document),
    "constants": (CONSTANTS, lambda document: document),
}


def write_changed(entries: Entries, path: Path, place: str, added: object) -> Path:
    """Add the field `novel` at one place."""
    entry, at = PLACES[place]
    edit(entries, entry, lambda document: at(document).update(novel=added))
    write_entries(path, entries)
    return path


@pytest.mark.parametrize("place", PLACES)
def test_a_field_without_text_is_ignored(place: str, archive: Path, entries: Entries, tmp_path: Path) -> None:
    added = [1, None, True, 0.5, [], {"name": None, "sizes": [3]}]
    base = load_base(write_changed(entries, tmp_path / "new.pt2", place, added))
    inputs = {"x": torch.randn(3, 4)}
    assert torch.equal(base.run(inputs)["output_0"], load_base(archive).run(inputs)["output_0"])


TEXTS: dict[str, object] = {
    "text": "open()",
    "a list": ["open()"],
    "a field that may have any text elsewhere": {"as_string": "open()"},
    "a name": {"name": "linear"},
    "a name in a table": {"open()": 1},
    "deep": [{"nodes": [{"inputs": ["open()"]}]}],
}


@pytest.mark.parametrize("place", PLACES)
def test_text_in_an_unknown_field_is_refused(place: str, entries: Entries, tmp_path: Path) -> None:
    path = write_changed(entries, tmp_path / "new.pt2", place, "open()")
    with pytest.raises(UnknownFieldError, match="novel"):
        load_base(path)


@pytest.mark.parametrize("added", TEXTS.values(), ids=TEXTS)
def test_no_text_in_an_unknown_field_passes(added: object, entries: Entries, tmp_path: Path) -> None:
    path = write_changed(entries, tmp_path / "new.pt2", "node", added)
    with pytest.raises(UnknownFieldError, match="novel"):
        load_base(path)


def test_the_way_out_is_named_and_works(archive: Path, entries: Entries, tmp_path: Path) -> None:
    edit(entries, PROGRAM, lambda document: document.update(torch_version="2.99.0"))
    path = write_changed(entries, tmp_path / "new.pt2", "program", "open()")
    with pytest.raises(UnknownFieldError) as caught:
        load_base(path)
    text = str(caught.value)
    assert f"{path}, `{PROGRAM}` at `novel`" in text
    assert "`open()`, written by torch 2.99.0" in text
    assert f"Capture the model again with torch {INSTALLED}" in text
    assert "load it with `trust_pickle=True`" in text
    trusted = load_base(path, trust_pickle=True)
    inputs = {"x": torch.randn(3, 4)}
    assert torch.equal(trusted.run(inputs)["output_0"], load_base(archive).run(inputs)["output_0"])


def test_a_field_of_the_installed_torch_may_name_values(
    entries: Entries, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The installed torch is newer than this package: its nodes have one more field."""
    newer = make_dataclass("Node", [("novel", str, "")], bases=(schema.Node,))
    monkeypatch.setattr(schema, "Node", newer)
    load_base(write_changed(entries, tmp_path / "name.pt2", "node", "linear"))
    for text in ("os", "linear.x", "open()"):
        path = write_changed(entries, tmp_path / "text.pt2", "node", text)
        with pytest.raises(UnsafeArchiveError, match=f"Capture the model again with torch {NEWEST} or older"):
            load_base(path)
