"""Files that are not archives, and damaged archives: each a clear error, never a traceback or wrong numbers."""

from __future__ import annotations

import contextlib
import gc
import gzip
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from archives import (
    CONSTANTS,
    PROGRAM,
    SAMPLE_INPUTS,
    WEIGHTS,
    Entries,
    Small,
    edit,
    read_entries,
    save_plainly,
    write_entries,
)
from hypothesis import HealthCheck, given
from hypothesis import strategies as st
from safetensors.torch import save_file
from tiers import examples

from adapter_export.errors import BaseModelError, FileError, InputError, UnsafeArchiveError
from adapter_export.torch_backend.base.archive import screen, write_outline
from adapter_export.torch_backend.base.torch_base import TorchBase, load_base


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("archive") / "small.pt2"
    save_plainly(path)
    return path


@pytest.fixture(scope="module")
def base(archive: Path) -> TorchBase:
    return load_base(archive)


@pytest.fixture
def entries(archive: Path) -> Entries:
    return read_entries(archive)


def save_torchscript(path: Path) -> None:
    """Write the zip of `torch.jit.save`, which is deprecated and warns."""
    with zipfile.ZipFile(path, "w") as file:
        for name in ("data.pkl", "constants.pkl", "code/__torch__/model.py", "version"):
            file.writestr(f"model/{name}", b"")


def save_old_archive(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as file:
        for name in ("version", "serialized_exported_program.json", "serialized_state_dict.pt"):
            file.writestr(name, b"8.2")


def save_compiled(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("model/data/aotinductor/model/model.so", b"\x7fELF")


def save_other_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("[Content_Types].xml", b"")


OTHERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (lambda path: path.write_bytes(b""), "an empty file"),
    "text": (lambda path: path.write_text("hello"), "starting with `68 65 6c 6c 6f`"),
    "json": (lambda path: path.write_text("{}"), "a text file"),
    "html": (lambda path: path.write_text("<!doctype html>"), "HTML"),
    "git_lfs": (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n"), "Git LFS pointer"),
    "gzip": (lambda path: path.write_bytes(gzip.compress(b"x")), "gzip"),
    "hdf5": (lambda path: path.write_bytes(b"\x89HDF\r\n\x1a\n"), "HDF5"),
    "gguf": (lambda path: path.write_bytes(b"GGUF\x03"), "GGUF"),
    "safetensors": (lambda path: save_file({"a": torch.zeros(2)}, path), "safetensors"),
    "onnx": (lambda path: path.write_bytes(b"\x08\x0a\x12\x07pytorch"), "ONNX"),
    "npz": (lambda path: np.savez(path.open("wb"), a=np.zeros(2)), "NumPy"),
    "state_dict": (lambda path: torch.save(Small().state_dict(), path), "a state dict"),
    "module": (lambda path: torch.save(Small(), path), "a pickled module or object (`archives.Small`)"),
    "legacy_pickle": (lambda path: torch.save(Small(), path, _use_new_zipfile_serialization=False), "a pickle"),
    "torchscript": (save_torchscript, "TorchScript"),
    "old_archive": (save_old_archive, "torch 2.7 or older"),
    "compiled": (save_compiled, "machine code"),
    "other_zip": (save_other_zip, "a zip file of another kind"),
}


@pytest.mark.parametrize("sort", OTHERS)
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_other_file_types_are_named(sort: str, tmp_path: Path) -> None:
    write, found = OTHERS[sort]
    path = tmp_path / "model.pt"
    write(path)
    with pytest.raises(BaseModelError) as caught:
        load_base(path)
    assert found in str(caught.value)
    assert str(path) in str(caught.value)
    assert caught.value.fix


@pytest.mark.parametrize("trust_pickle", [False, True])
def test_missing_files_and_folders_are_refused(tmp_path: Path, trust_pickle: bool) -> None:
    for path in (tmp_path / "missing.pt", tmp_path):
        with pytest.raises(FileError, match=str(path)):
            load_base(path, trust_pickle=trust_pickle)


def test_unreadable_files_are_refused_despite_trust(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    path.write_text("hello")
    with pytest.raises(BaseModelError, match="not a torch archive"):
        load_base(path, trust_pickle=True)


def test_invalid_sample_inputs_are_refused_despite_trust(entries: Entries, tmp_path: Path) -> None:
    write_entries(tmp_path / "bad.pt2", entries | {SAMPLE_INPUTS: b"hello"})
    with pytest.raises(BaseModelError, match="torch cannot load"):
        load_base(tmp_path / "bad.pt2", trust_pickle=True)


@pytest.mark.parametrize("part", [0.02, 0.3, 0.5, 0.9, 0.99, 0.9999])
def test_truncated_archives_are_refused(archive: Path, tmp_path: Path, part: float) -> None:
    data = archive.read_bytes()
    path = tmp_path / "short.pt2"
    path.write_bytes(data[: int(len(data) * part)])
    with pytest.raises(BaseModelError, match="truncated"):
        load_base(path)


def remove(name: str) -> Callable[[Entries], object]:
    return lambda entries: entries.pop(name)


def put(name: str, data: bytes) -> Callable[[Entries], object]:
    return lambda entries: entries.update({name: data})


def change(name: str, edit_document: Callable[[Any], object]) -> Callable[[Entries], object]:
    return lambda entries: edit(entries, name, edit_document)


def bias(**fields: object) -> Callable[[Entries], object]:
    return change(WEIGHTS, lambda document: document["config"]["linear.bias"]["tensor_meta"].update(fields))


DAMAGE: dict[str, tuple[Callable[[Entries], object], str]] = {
    "no weights": (remove("data/weights/weight_0"), "no entry `data/weights/weight_"),
    "no list of weights": (remove(WEIGHTS), "no entry"),
    "no json": (put(PROGRAM, b"{"), "is not JSON"),
    "deep json": (put(PROGRAM, b"[" * 100_000), "is not JSON"),
    "huge number": (put(PROGRAM, b"9" * 100_000), "is not JSON"),
    "a key twice": (put(PROGRAM, b'{"graph_module": 1, "graph_module": 2}'), "repeats the key"),
    "no program": (put(PROGRAM, b"{}"), "does not contain a program"),
    "an empty program": (put(PROGRAM, b'{"graph_module": {}}'), "torch cannot load"),
    "another format": (put("archive_format", b"pt3"), "archive_format"),
    "another version": (put("archive_version", b"7"), "torch cannot load"),
    "big-endian": (put("byteorder", b"big"), "byteorder"),
    "text that is none": (put("extra/tokenizer.json", b"\xff"), "is not UTF-8"),
    "a note that is none": (put("extra/adapter_export.json", b"{}"), "version"),
    "a note with a new key": (
        put("extra/adapter_export.json", b'{"version": "1.0.0", "producer": "x", "inputs": {}, "more": 1}'),
        "unknown key `more`",
    ),
    "sizes beyond the bytes": (bias(sizes=[{"as_int": 5}]), "at least 20"),
    "strides beyond the bytes": (bias(strides=[{"as_int": 2}]), "at least 28"),
    "offset beyond the bytes": (bias(storage_offset={"as_int": 1}), "at least 20"),
    "negative size": (bias(sizes=[{"as_int": -1}]), "not numbers"),
    "symbolic size": (bias(sizes=[{"as_expr": {"expr_str": "1"}}]), "not numbers"),
    "true as a size": (bias(sizes=[{"as_int": True}]), "not numbers"),
    "sparse": (bias(layout=1), "dense"),
    "unknown type": (bias(dtype=99), "dense"),
    "on a GPU": (bias(device={"type": "cuda", "index": 0}), r"to\('cpu'\)"),
    "half precision": (bias(dtype=6), "float32"),
    "a huge empty tensor": (
        lambda entries: (bias(sizes=[{"as_int": 10**15}])(entries), entries.update({"data/weights/weight_1": b""})),
        "at least",
    ),
    "sample inputs that are none": (put(SAMPLE_INPUTS, b"hello"), "sample_inputs"),
    "a class of another library": (
        change(PROGRAM, lambda d: signature(d).update(out_spec=treespec("transformers.modeling_outputs.X"))),
        "instead of plain tensors",
    ),
}


def signature(document: Any) -> Any:
    return document["graph_module"]["module_call_graph"][0]["signature"]


def treespec(name: str) -> str:
    leaf = {"type": None, "context": None, "children_spec": []}
    return json.dumps([1, {"type": name, "context": '["a"]', "children_spec": [leaf]}])


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_archives_are_refused(name: str, entries: Entries, tmp_path: Path) -> None:
    damage, message = DAMAGE[name]
    damage(entries)
    write_entries(tmp_path / "bad.pt2", entries)
    with pytest.raises(BaseModelError, match=message) as caught:
        load_base(tmp_path / "bad.pt2")
    assert "bad.pt2" in str(caught.value)


def nodes(document: Any) -> Any:
    return document["graph_module"]["graph"]["nodes"]


UNSAFE: dict[str, Callable[[Entries], object]] = {
    "compiled code": put("data/aotinductor/model/model.so", b"\x7fELF"),
    "a second program": put("models/other.json", b"{}"),
    "a path upwards": put("extra/../../x", b""),
    "a folder in extra": put("extra/a/b", b""),
    "an unknown entry": put("data/weights/evil", b""),
    "a custom object": change(CONSTANTS, lambda d: d["config"]["lifted_tensor_0"].update(path_name="custom_obj_0")),
    "a payload upwards": change(CONSTANTS, lambda d: d["config"]["lifted_tensor_0"].update(path_name="../x")),
    "a pickle that says 1": change(WEIGHTS, lambda d: d["config"]["linear.bias"].update(use_pickle=1)),
    "a pickle that says nothing": change(WEIGHTS, lambda d: d["config"]["linear.bias"].pop("use_pickle")),
    "python's call": change(PROGRAM, lambda d: nodes(d)[0].update(target="_operator.call")),
    "a function of torch": change(PROGRAM, lambda d: nodes(d)[0].update(target="torch.os.mkdir")),
    "a method of the namespace": change(PROGRAM, lambda d: nodes(d)[0].update(target="torch.ops.aten.__init__.x")),
    "a class of the namespace": change(PROGRAM, lambda d: nodes(d)[0].update(target="torch.ops.aten.__class__.mro")),
    "an operator of others": change(PROGRAM, lambda d: nodes(d)[0].update(target="torch.ops.image.read_file.default")),
    "an unknown operator": change(PROGRAM, lambda d: nodes(d)[0].update(target="torch.ops.aten.evil.default")),
    "an unknown overload": change(PROGRAM, lambda d: nodes(d)[0].update(target="torch.ops.aten.add.evil")),
    "an operator as argument": change(
        PROGRAM, lambda d: nodes(d)[0]["inputs"][0].update(arg={"as_operator": "torch.os.mkdir"})
    ),
    "text for a number": change(PROGRAM, lambda d: nodes(d)[0]["inputs"][0].update(arg={"as_int": "open()"})),
    "text in an unknown field": change(PROGRAM, lambda d: d.update(new_field="open()")),
    "an object in the graph": change(
        PROGRAM, lambda d: d["graph_module"]["graph"]["custom_obj_values"].update(a={"name": "a", "class_fqn": "b"})
    ),
    "a module path with quotes": change(
        PROGRAM, lambda d: d["graph_module"]["module_call_graph"][0].update(fqn='a"),open("x","w")')
    ),
    "a symbol with a huge number": change(
        PROGRAM, lambda d: d["range_constraints"].update(u99999999999={"min_val": 0, "max_val": 1})
    ),
    "a value in a table with an odd name": change(
        PROGRAM, lambda d: d["graph_module"]["graph"]["tensor_values"].update({"a=b": None})
    ),
    "an expression behind the name metadata": change(
        PROGRAM,
        lambda d: d["graph_module"]["graph"]["sym_int_values"].update(metadata={"as_expr": {"expr_str": "open()"}}),
    ),
}


@pytest.mark.parametrize("name", UNSAFE)
def test_unsafe_archives_require_trust_pickle(name: str, entries: Entries, tmp_path: Path) -> None:
    UNSAFE[name](entries)
    write_entries(tmp_path / "bad.pt2", entries)
    with pytest.raises(UnsafeArchiveError, match="trust_pickle=True"):
        load_base(tmp_path / "bad.pt2")


def test_compressed_entries_are_refused_unread(entries: Entries, tmp_path: Path) -> None:
    path = tmp_path / "bomb.pt2"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in (entries | {"extra/bomb": b"\0" * 10**7}).items():
            file.writestr(f"archive/{name}", data)
    assert path.stat().st_size < 10**5
    with pytest.raises(BaseModelError, match="compressed"):
        load_base(path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("name", [PROGRAM, "data/weights/weight_0"])
def test_an_entry_that_occurs_twice_is_refused(entries: Entries, tmp_path: Path, name: str) -> None:
    path = tmp_path / "twice.pt2"
    write_entries(path, entries)
    with zipfile.ZipFile(path, "a") as file:
        file.writestr(f"archive/{name}", b"{}")
    with pytest.raises(BaseModelError, match="two entries"):
        load_base(path)


def test_entries_that_overlap_are_refused(entries: Entries, tmp_path: Path) -> None:
    path = tmp_path / "overlap.pt2"
    with zipfile.ZipFile(path, "w") as file:
        for name, data in entries.items():
            file.writestr(f"archive/{name}", data)
        first = file.getinfo(f"archive/{PROGRAM}")
        for index in range(100, 400):
            copy = zipfile.ZipInfo(f"archive/data/weights/weight_{index}")
            copy.header_offset, copy.CRC = first.header_offset, first.CRC
            copy.file_size = copy.compress_size = first.file_size
            file.filelist.append(copy)
    with pytest.raises(BaseModelError, match="larger than the file"):
        load_base(path)


class Sharing(torch.nn.Module):
    """Tied weights, a transposed one, and one that is a part of another."""

    def __init__(self) -> None:
        super().__init__()
        self.up = torch.nn.Linear(4, 6)
        self.tied = torch.nn.Linear(4, 6)
        self.tied.weight = self.up.weight
        self.down = torch.nn.Parameter(torch.randn(4, 6).T)
        self.register_buffer("first", self.up.weight.detach()[:1])
        self.register_buffer("count", torch.tensor(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.up(x) + self.tied(x) + self.first.sum()) @ self.down * self.count


def test_program_equals_the_one_read_by_torch(archive: Path, base: TorchBase) -> None:
    expected = torch.export.load(archive)
    assert base.program.graph_signature == expected.graph_signature
    assert base.program.range_constraints == expected.range_constraints
    for node, other in zip(base.program.graph.nodes, expected.graph.nodes, strict=True):
        assert node.format_node() == other.format_node()
        shapes = [str(getattr(each.meta.get("val"), "shape", None)) for each in (node, other)]
        assert shapes[0] == shapes[1]


@pytest.mark.filterwarnings("ignore:No complete tensor found")  # torch writes the transposed one as it is
@pytest.mark.parametrize("shift", [0, 1])
def test_weights_in_the_file_are_those_that_torch_reads(shift: int, tmp_path: Path) -> None:
    """At any position in the file; only aligned ones are used there."""
    path, copy = tmp_path / "sharing.pt2", tmp_path / "copy.pt2"
    torch.export.save(torch.export.export(Sharing(), (torch.ones(2, 4),)), path)
    entries = read_entries(path)
    write_entries(copy, {"extra/shift": b"." * shift, **entries} if shift else entries)
    expected, base = torch.export.load(path), load_base(copy)
    tensors = base.program.state_dict
    assert tensors.keys() == expected.state_dict.keys()
    for name, tensor in expected.state_dict.items():
        assert (type(tensors[name]), tensors[name].stride()) == (type(tensor), tensor.stride())
        assert torch.equal(tensors[name], tensor)
    assert tensors["up.weight"].data_ptr() == tensors["tied.weight"].data_ptr() == tensors["first"].data_ptr()
    assert base.fingerprint == load_base(path, trust_pickle=True).fingerprint
    x = torch.randn(2, 4)
    assert torch.equal(next(iter(base.run({"x": x}).values())), expected.module()(x))


def test_a_changed_bit_of_a_weight_is_refused(archive: Path, tmp_path: Path) -> None:
    data = bytearray(archive.read_bytes())
    with zipfile.ZipFile(archive) as file:
        (info, *_) = (info for info in file.infolist() if "data/weights/weight_" in info.filename)
        weight = file.read(info)
    data[data.index(weight)] ^= 1
    (tmp_path / "changed.pt2").write_bytes(data)
    with pytest.raises(BaseModelError, match=r"is damaged.*another checksum"):
        load_base(tmp_path / "changed.pt2")


def test_opening_a_base_keeps_its_weights_out_of_memory(tmp_path: Path) -> None:
    """Weights are mapped, and hashed without keeping their pages."""
    model = torch.nn.Sequential(*(torch.nn.Linear(1000, 1000) for _ in range(20)))
    torch.export.save(torch.export.export(model, (torch.ones(1, 1000),)), tmp_path / "large.pt2")
    del model
    before = resident()
    base = load_base(tmp_path / "large.pt2")
    assert base.parameters == 20 * 1001 * 1000
    assert resident() - before < 30 * 2**20, "of 80 MB of weights"


def resident() -> int:
    """Bytes of this process in memory, mapped pages included."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_a_weight_behind_the_end_of_the_file_is_refused(archive: Path, tmp_path: Path) -> None:
    data = bytearray(archive.read_bytes())
    with zipfile.ZipFile(archive) as file:
        (info, *_) = (info for info in file.infolist() if "data/weights/weight_" in info.filename)
    data[info.header_offset + 28 : info.header_offset + 30] = b"\xff\xff"  # the length of the extra field
    (tmp_path / "moved.pt2").write_bytes(data)
    with pytest.raises(BaseModelError, match="past the end of the file"):
        load_base(tmp_path / "moved.pt2")


def test_the_copy_for_torch_holds_no_sample_inputs_guards_or_stack_traces(archive: Path, tmp_path: Path) -> None:
    with (tmp_path / "clean.pt2").open("wb") as file:
        write_outline(screen(archive), file)
    entries = read_entries(tmp_path / "clean.pt2")
    document = json.loads(entries[PROGRAM])
    assert entries[SAMPLE_INPUTS] == b""
    assert document["guards_code"] == []
    assert b"stack_trace" in read_entries(archive)[PROGRAM]
    assert b"stack_trace" not in entries[PROGRAM]
    assert "linear" in nodes(document)[0]["metadata"]["nn_module_stack"]


def test_an_input_may_be_named_like_a_field_of_the_format(tmp_path: Path) -> None:
    class Odd(torch.nn.Module):
        def forward(self, metadata: torch.Tensor, token: torch.Tensor) -> torch.Tensor:
            return metadata + token

    program = torch.export.export(Odd().eval(), (torch.ones(3, 4), torch.ones(3, 4)))
    torch.export.save(program, tmp_path / "odd.pt2")
    base = load_base(tmp_path / "odd.pt2")
    assert [record.name for record in base.inputs] == ["metadata", "token"]
    result = base.run({"metadata": torch.ones(3, 4), "token": torch.full((3, 4), 2.0)})
    assert torch.equal(result["output_0"], torch.full((3, 4), 3.0))


def test_loading_needs_no_name_that_ends_in_pt2_and_says_nothing(
    archive: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "model.bin").write_bytes(archive.read_bytes())
    for trust_pickle in (False, True):
        load_base(tmp_path / "model.bin", trust_pickle=trust_pickle)
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""


@examples(60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_flipped_bit_is_a_named_error_or_changes_nothing(
    archive: Path, base: TorchBase, tmp_path: Path, data: st.DataObject
) -> None:
    contents = bytearray(archive.read_bytes())
    position = data.draw(st.integers(0, len(contents) * 8 - 1))
    contents[position // 8] ^= 1 << position % 8
    path = tmp_path / "flipped.pt2"
    path.write_bytes(contents)
    try:
        loaded = load_base(path)
    except InputError:
        return
    assert loaded.fingerprint == base.fingerprint
    x = torch.ones(2, 4)
    assert torch.equal(loaded.run({"x": x})["output_0"], base.run({"x": x})["output_0"])


@examples(40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_changed_program_bytes_raise_only_named_errors(archive: Path, tmp_path: Path, data: st.DataObject) -> None:
    entries = read_entries(archive)
    program = bytearray(entries[PROGRAM])
    position = data.draw(st.integers(0, len(program) - 1))
    program[position] = data.draw(st.sampled_from(b'0aZ "{}[],:.-_\\'))
    write_entries(tmp_path / "changed.pt2", entries | {PROGRAM: bytes(program)})
    with contextlib.suppress(InputError):
        load_base(tmp_path / "changed.pt2")
