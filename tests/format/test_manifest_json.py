"""The manifest: its reader by hand and its published schema say the same, and what they say is strict."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from adapter_export.errors import AdapterError, AdapterExportError, FileError, FormatError, InputError, VersionError
from adapter_export.format.canonical import canonical_json
from adapter_export.format.manifest import Manifest
from adapter_export.format.manifest_json import read_manifest, write_manifest
from adapter_export.format.records import record_from_json
from adapter_export.format.schema import validate

Document = dict[str, Any]
Change = Callable[[Document], object]


def as_json(manifest: Manifest) -> Document:
    document: Document = json.loads(canonical_json(asdict(manifest)))
    return document


def test_round_trip(manifest: Manifest, bundle: Path) -> None:
    write_manifest(manifest, bundle)
    assert read_manifest(bundle) == manifest
    first = (bundle / "manifest.json").read_bytes()
    write_manifest(read_manifest(bundle), bundle)
    assert (bundle / "manifest.json").read_bytes() == first
    validate(json.loads(first), "bundle-manifest", "test")


def test_the_least_that_a_manifest_says(manifest: Manifest, bundle: Path) -> None:
    least = replace(manifest, heads=(), sites=(), slots=(), adapters=(), text=None, outputs=manifest.outputs[:1])
    write_manifest(least, bundle)
    assert read_manifest(bundle) == least


def places(value: Any, *path: str | int) -> Iterator[tuple[str | int, ...]]:
    """The path of every value of a document."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from places(item, *path, key)


def at(document: Any, path: tuple[str | int, ...]) -> Any:
    for key in path:
        document = document[key]
    return document


ODD_VALUES = (
    None,
    True,
    0,
    1,
    -1,
    3.0,
    2.5,
    "",
    "text",
    "../a",
    "a/b",
    "/a",
    "a//b",
    "C:a",
    "a\\b",
    ".",
    "a/./b",
    [],
    {},
)
ODD_VALUES += (
    [1],
    {"a": 1},
    ["a"],
    "a" * 64,
    "A" * 64,
    "mask",
    "1.0.0",
    ["a", 1],
    [-1],
    {"a": -1.5},
    "a/..b",
    "..a",
    1e300,
)


def mutants(document: Document) -> Iterator[tuple[str, Document]]:
    """The document with one value exchanged, left out or added, at every place in turn; the version is let alone."""
    for path in places(document):
        if not path or path[0] == "version":
            continue
        *parents, last = path
        for value in ODD_VALUES:
            changed = copy.deepcopy(document)
            at(changed, tuple(parents))[last] = value
            yield f"{path} = {value!r}", changed
        changed = copy.deepcopy(document)
        del at(changed, tuple(parents))[last]
        yield f"{path} left out", changed
        if isinstance(at(document, path), dict):
            changed = copy.deepcopy(document)
            at(changed, path)["surplus"] = 1
            yield f"{path} with more", changed


def accepts(check: Callable[[], object]) -> bool:
    try:
        check()
    except AdapterExportError:
        return False
    return True


def test_reader_and_schema_agree_on_every_mutant(manifest: Manifest) -> None:
    document = as_json(manifest)
    document["adapters"][0]["labels"] = document["adapters"][0]["labels"][:1]
    document["files"] = document["files"][:1]
    verdicts = []
    for name, changed in mutants(document):
        by_schema = accepts(lambda changed=changed: validate(changed, "bundle-manifest", "test"))
        by_reader = accepts(lambda changed=changed: record_from_json(Manifest, changed))
        assert by_reader == by_schema, name
        verdicts.append(by_reader)
    assert len(verdicts) > 2000
    assert verdicts.count(True) > 200


BAD: dict[str, tuple[Change, type[InputError], str]] = {
    "no version": (lambda d: d.pop("version"), FormatError, "states no format version"),
    "newer major": (lambda d: d.update(version="2.0.0"), VersionError, "found version 2.0.0"),
    "newer minor, unknown key": (
        lambda d: d.update(version="1.2.0", futures={}),
        VersionError,
        "unknown key `futures`",
    ),
    "unknown key": (lambda d: d["slots"][0].update(bank=1), FormatError, "`$.slots[0]`: breaks the format"),
    "missing key": (lambda d: d["text"].pop("max_tokens"), FormatError, "no key `max_tokens`"),
    "wrong type": (lambda d: d.update(opset="18"), FormatError, "`$.opset`: breaks the format; found `18`"),
    "axis of length 0": (lambda d: d["inputs"][0]["axes"].append(0), FormatError, "`$.inputs[0].axes[2]`"),
    "wrong role": (lambda d: d["inputs"][0].update(role="id"), FormatError, "`ids`, `mask`, `cache`, `values`"),
    "cache that nothing feeds": (lambda d: d["inputs"][0].update(next="nowhere"), FormatError, "`nowhere`"),
    "path that leaves": (lambda d: d["files"][0].update(path="../x"), FormatError, "`$.files[0].path`"),
    "absolute path": (lambda d: d["graphs"].update(slots="/model.onnx"), FormatError, "`$.graphs.slots`"),
    "drive letter": (lambda d: d["text"].update(tokenizer="C:/t.json"), FormatError, "`$.text.tokenizer`"),
    "backslash": (lambda d: d["golden"].update(path="golden\\a"), FormatError, "`$.golden.path`"),
    "null byte": (lambda d: d["golden"].update(path="golden\0a"), FormatError, "`$.golden.path`"),
    "bad hash": (lambda d: d["files"][0].update(sha256="00"), FormatError, "`$.files[0].sha256`"),
    "bad adapter name": (lambda d: d["adapters"][0].update(name="a/b"), AdapterError, "`$.adapters[0].name`"),
    "adapter twice": (lambda d: d["adapters"].append(d["adapters"][0]), FormatError, "`$.adapters`"),
    "names that differ in case": (
        lambda d: d["adapters"].append({**d["adapters"][0], "name": "TINY-1.0"}),
        FormatError,
        "`$.adapters`: a name occurs twice",
    ),
    "file twice": (lambda d: d["files"].append(d["files"][0]), FormatError, "`$.files`"),
    "slot twice": (lambda d: d["slots"].append(d["slots"][0]), FormatError, "`$.slots`"),
    "site twice": (lambda d: d["sites"].append(d["sites"][0]), FormatError, "`$.sites`"),
    "slot at no site": (lambda d: d["slots"][0].update(site="nowhere"), FormatError, "`nowhere`"),
    "labels without a task": (
        lambda d: d["adapters"][0].update(task=None, output=None),
        FormatError,
        "`$.adapters[0]`: task, output and labels do not go together",
    ),
    "a task without an output": (lambda d: d["adapters"][0].update(output=None), FormatError, "`$.adapters[0]`: task"),
    "a regression with labels": (lambda d: d["adapters"][0].update(task="regression"), FormatError, "task regression"),
    "output of no head": (lambda d: d["adapters"][0].update(output="hidden"), FormatError, "`$.adapters[0].output`"),
    "unknown task": (lambda d: d["adapters"][0].update(task="rank"), FormatError, "found `rank`"),
    "head of no output": (lambda d: d["heads"][0].update(output="other"), FormatError, "`$.heads`"),
    "head twice": (lambda d: d["heads"].append(d["heads"][0]), FormatError, "`$.heads`"),
    "slot of no head": (lambda d: d["heads"][0].update(graph="other"), FormatError, "`$.heads`"),
    "golden of no output": (lambda d: d["golden"]["absolute"].update(other=1.0), FormatError, "`$.golden.absolute`"),
    "graph without hash": (lambda d: d["graphs"].update(slots="other.onnx"), FormatError, "`other.onnx`"),
    "golden without hash": (
        lambda d: d["adapters"][0]["golden"].update(path="golden/other"),
        FormatError,
        "`$.adapters[0].golden.path`",
    ),
    "adapter without hash": (lambda d: d["adapters"][0].update(source="other"), FormatError, "`other/weights.safet"),
    "tokenizer without hash": (lambda d: d["text"].update(tokenizer="other.json"), FormatError, "`$.text.tokenizer`"),
    "weights to no slot": (
        lambda d: d["adapters"][0]["mix"].update(slots=["other"]),
        FormatError,
        "`$.adapters[0].mix.slots`: a name that stands nowhere else",
    ),
    "weights without a column for each member": (
        lambda d: d["adapters"][0]["mix"].update(members=["first", "second", "third"]),
        FormatError,
        "with shape ['rows', 2]; expected [rows, 3]",
    ),
    "weights to a slot of something else": (
        lambda d: d["adapters"][0]["mix"].update(slots=["adapter.head.classifier.bias"]),
        FormatError,
        "with shape ['classes']",
    ),
    "a member twice": (
        lambda d: d["adapters"][0]["mix"].update(members=["first", "first"]),
        FormatError,
        "`$.adapters[0].mix.members`: a name occurs twice",
    ),
    "lists itself": (lambda d: d["files"][0].update(path="manifest.json"), FormatError, "`manifest.json`"),
}


@pytest.mark.parametrize(("change", "error", "place"), BAD.values(), ids=BAD.keys())
def test_names_what_is_wrong(
    manifest: Manifest, tmp_path: Path, change: Change, error: type[InputError], place: str
) -> None:
    document = as_json(manifest)
    change(document)
    (tmp_path / "manifest.json").write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(error) as caught:
        read_manifest(tmp_path)
    assert place in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path / "manifest.json"))


def test_a_newer_minor_version_that_holds_nothing_new_is_read(manifest: Manifest, bundle: Path) -> None:
    newer = replace(manifest, version="1.4.0")
    write_manifest(newer, bundle)
    assert read_manifest(bundle) == newer


def test_writes_only_what_can_be_read(manifest: Manifest, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"\$\.adapters"):
        write_manifest(replace(manifest, adapters=manifest.adapters * 2), tmp_path)
    assert not (tmp_path / "manifest.json").exists()


def test_a_folder_without_a_manifest(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(FileError, match="is not a bundle"):
            read_manifest(folder)


def test_the_reader_needs_numpy_alone() -> None:
    code = "import sys, adapter_export.format.manifest_json, adapter_export.format.inventory; print(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "numpy" in found
    assert not {"jsonschema", "safetensors", "onnx", "onnx_ir", "torch", "rich", "click"} & set(found)
