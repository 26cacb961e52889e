"""The manifest: it is read as it was written, and what breaks its rules is refused by name."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from adapter_export.errors import FileError, FormatError, HashError, InputError, VersionError
from adapter_export.format.files import canonical_json
from adapter_export.format.manifest import Manifest
from adapter_export.format.manifest_json import read_manifest, write_manifest
from schemas import validate

Document = dict[str, Any]
Change = Callable[[Document], object]


def as_json(manifest: Manifest) -> Document:
    document: Document = json.loads(canonical_json(asdict(manifest)))
    del document["checksum"]
    return document


def test_written_manifests_are_read_back_unchanged(manifest: Manifest, bundle: Path) -> None:
    write_manifest(manifest, bundle)
    assert read_manifest(bundle) == manifest
    first = (bundle / "manifest.json").read_bytes()
    write_manifest(read_manifest(bundle), bundle)
    assert (bundle / "manifest.json").read_bytes() == first
    validate(json.loads(first), "bundle-manifest")


def test_minimal_manifest_is_read_back(manifest: Manifest, bundle: Path) -> None:
    least = replace(
        manifest, heads=(), sites=(), slots=(), adapters=(), text=None, golden_texts=None, outputs=manifest.outputs[:1]
    )
    write_manifest(least, bundle)
    assert read_manifest(bundle) == least


def _parts(document: dict[str, Any], **changed: Any) -> dict[str, Any]:
    """Return golden parts of the manifest with changes."""
    golden = document["adapters"][0]["golden"]
    part = {"fault": "a off", "output": next(iter(golden["absolute"])), "factor": 1.0, "limit": 0.5}
    part |= {key: value for key, value in changed.items() if key in part}
    return {"path": changed.get("path", golden["path"]), "cases": ["one"], "parts": [part]}


BAD: dict[str, tuple[Change, type[InputError], str]] = {
    "no version": (lambda d: d.pop("version"), FormatError, "has no format version"),
    "newer major": (lambda d: d.update(version="2.0.0"), VersionError, "found version 2.0.0"),
    "newer minor, unknown key": (
        lambda d: d.update(version="1.2.0", futures={}),
        VersionError,
        "unknown key `futures`",
    ),
    "unknown key": (lambda d: d["slots"][0].update(bank=1), FormatError, "`$.slots[0]`: breaks the format"),
    "missing key": (lambda d: d["text"].pop("digest"), FormatError, "no key `digest`"),
    "lengths of no axis": (lambda d: d["lengths"].update(tokens={}), FormatError, "`$.lengths`"),
    "a maximum that is none": (lambda d: d["lengths"]["sequence"].update(maximum=510), FormatError, "their own bounds"),
    "a multiple of 0": (lambda d: d["lengths"]["sequence"].update(multiple_of=0), FormatError, "multiple_of"),
    "texts of any length": (lambda d: d.update(lengths={}), FormatError, "no maximum length of texts"),
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
    "bad adapter name": (lambda d: d["adapters"][0].update(name="a/b"), FormatError, "`$.adapters[0].name`"),
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
    "an output of another task": (
        lambda d: d["adapters"][0].update(task={"type": "embedding"}),
        FormatError,
        "`$.adapters[0]`: the output does not match the task; found `logits` with `logits`",
    ),
    "a task without an output": (
        lambda d: d["adapters"][0].update(output=None),
        FormatError,
        "the output does not match the task",
    ),
    "a regression with labels": (
        lambda d: d["adapters"][0]["task"].update(type="regression"),
        FormatError,
        "`$.adapters[0].task`: labels and classes differ",
    ),
    "output of no head": (lambda d: d["adapters"][0].update(output="hidden"), FormatError, "`$.adapters[0].output`"),
    "unknown task": (lambda d: d["adapters"][0]["task"].update(type="rank"), FormatError, "found `rank`"),
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
    "golden parts without hash": (
        lambda d: d["adapters"][0]["golden"].update(parts=_parts(d, path="golden/other")),
        FormatError,
        "`$.adapters[0].golden.path`",
    ),
    "a part of no output": (
        lambda d: d["adapters"][0]["golden"].update(parts=_parts(d, output="other")),
        FormatError,
        "`$.adapters[0].golden.parts.parts`",
    ),
    "golden parts without a limit": (
        lambda d: d["adapters"][0]["golden"].update(parts=_parts(d, limit=-1.0)),
        FormatError,
        "`$.adapters[0].golden.parts.parts[0].limit`",
    ),
    "a digest of no graph": (
        lambda d: d["golden"].update(recorded={"other": "0" * 64}),
        FormatError,
        "`$.golden.recorded`",
    ),
    "checksums in no output": (lambda d: d.update(checksums="other"), FormatError, "`$.checksums`"),
    "adapter without hash": (lambda d: d["adapters"][0].update(source="other"), FormatError, "`other/weights.safet"),
    "golden texts without hash": (lambda d: d.update(golden_texts="other.json"), FormatError, "`$.golden_texts`"),
    "golden batches without hash": (lambda d: d.update(golden_batches="other.json"), FormatError, "`$.golden_batches`"),
    "no golden texts": (lambda d: d.update(golden_texts=None), FormatError, "a tokenizer and golden texts"),
    "golden texts alone": (lambda d: d.update(text=None), FormatError, "a tokenizer and golden texts"),
    "tokenizer without hash": (lambda d: d["text"].update(tokenizer="other.json"), FormatError, "`$.text.tokenizer`"),
    "weights to no slot": (
        lambda d: d["adapters"][0]["mix"].update(slots=["other"]),
        FormatError,
        "`$.adapters[0].mix.slots`: an undefined name",
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
def test_reader_names_the_invalid_field(
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


def test_writer_refuses_unreadable_manifests(manifest: Manifest, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"\$\.adapters"):
        write_manifest(replace(manifest, adapters=manifest.adapters * 2), tmp_path)
    assert not (tmp_path / "manifest.json").exists()


def test_folders_without_a_manifest_are_refused(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(FileError, match="is not a bundle"):
            read_manifest(folder)


@pytest.mark.extended
def test_the_reader_needs_numpy_alone() -> None:
    code = "import sys, adapter_export.format.manifest_json; print(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "numpy" in found
    assert not {"safetensors", "onnx", "onnx_ir", "torch", "rich", "click"} & set(found)


def test_a_flipped_bit_in_a_manifest_is_refused(manifest: Manifest, tmp_path: Path) -> None:
    """Any location: a label, a row of the bank, a length, or the checksum itself."""
    write_manifest(manifest, tmp_path)
    path = tmp_path / "manifest.json"
    data = path.read_bytes()
    for place in range(0, len(data), 7):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1 << place % 8]) + data[place + 1 :])
        with pytest.raises(FormatError):
            read_manifest(tmp_path)
    path.write_bytes(data)
    assert read_manifest(tmp_path) == manifest


def test_reader_accepts_only_the_expected_bundle(manifest: Manifest, tmp_path: Path) -> None:
    write_manifest(manifest, tmp_path)
    digest = hashlib.sha256((tmp_path / "manifest.json").read_bytes()).hexdigest()
    assert read_manifest(tmp_path, expect=digest) == read_manifest(tmp_path, expect=f"sha256:{digest}") == manifest
    write_manifest(replace(manifest, producer="another"), tmp_path)
    with pytest.raises(HashError, match="does not match the expected bundle"):
        read_manifest(tmp_path, expect=digest)
