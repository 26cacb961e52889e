"""Reader and writer of `manifest.json`, and verification of its files.

Specified in `docs/reference/format.md`.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

from adapter_export.dtypes import FLOAT_TYPES
from adapter_export.errors import FileError, FormatError, HashError, within
from adapter_export.format.files import check_checksum, checked_json
from adapter_export.format.manifest import BAKED, GRAPH_VARIANTS, FileRecord, GoldenRecord, Manifest, MixRecord
from adapter_export.format.records import record_from_json, version_checked
from adapter_export.graph.adapter import HEAD, PREFIX, SHARED
from adapter_export.safe_io.documents import parse_json
from adapter_export.safe_io.output import Output
from adapter_export.safe_io.regular_files import copy_hashed, read_bytes, sha256_of, unreadable
from adapter_export.tables import number_of
from adapter_export.version import __version__
from adapter_export.words import quoted

MANIFEST_VERSION = "1.0.0"
"""Version of the manifest format written, and the newest supported."""

PRODUCER = f"adapter-export {__version__}"
"""Tool and version that write bundles."""

MANIFEST_FILE = "manifest.json"

SIGNATURE_FILE = "model.sig"
"""Signature of a bundle; it covers the manifest, which cannot list it."""

REPORT_FILE = "check.json"
"""Report of `check`; it contains the manifest's hash, so the manifest cannot list it. The signature covers it."""

CARD_FILE = "README.md"
"""README of a build, or a model card. It contains the manifest's digest, so the manifest cannot list it."""

_MOST_SKETCHED = 2**16
"""Maximum numbers of a sketch for each row; clients refuse more."""

UNLISTED = (MANIFEST_FILE, SIGNATURE_FILE, REPORT_FILE, CARD_FILE)
"""Files of a bundle that its manifest does not list."""

_SOURCE_FILES = ("adapter_graph.json", "weights.safetensors")

Opened = TypeVar("Opened")

_SHOWN = 5
"""Maximum number of files that a message names."""


def read_manifest(folder: Path, *, expect: str | None = None) -> Manifest:
    """Read the manifest of a bundle, without its files: see `verify_files`.

    Args:
        folder: the bundle.
        expect: the required SHA-256 of the manifest, which covers the hashes of all files.

    Raises:
        FileError: the folder or the manifest is missing or cannot be read.
        FormatError: the manifest violates the format; the message contains the JSON path. `VersionError` is a subclass.
        HashError: the manifest does not match its checksum or `expect`.
    """
    path = folder / MANIFEST_FILE
    if not path.is_file():  # reading a pipe could block
        raise FileError(
            "is not a bundle", where=folder, expected=f"a folder with `{MANIFEST_FILE}`", fix="check the path"
        )
    data = read_bytes(path)
    digest = hashlib.sha256(data).hexdigest()
    if expect is not None and digest != expect.removeprefix("sha256:").lower():
        fix = "deploy the bundle that was approved, or approve this one"
        raise HashError(path, "does not match the expected bundle", found=digest, expected=expect, fix=fix)
    manifest = _from_json(parse_json(data, path), path)
    check_checksum(data, manifest.checksum, path)
    return manifest


def open_whole(folder: Path, opened: Callable[[Manifest], Opened], *, expect: str | None = None) -> Opened:
    """Read a manifest and open its files; retry if the bundle was replaced meanwhile.

    During a replacement, a reader may see the manifest of one bundle and files of the other.

    Args:
        folder: the bundle.
        opened: opens the files and compares them with their hashes.
        expect: see `read_manifest`.

    Raises:
        FileError, FormatError, HashError: see `read_manifest` and `opened`.
    """
    manifest = read_manifest(folder, expect=expect)
    while True:
        try:
            return opened(manifest)
        except (FileError, FormatError):
            before, manifest = manifest, read_manifest(folder, expect=expect)
            if manifest == before:
                raise


def write_manifest(manifest: Manifest, folder: Path) -> None:
    """Write the manifest of a bundle, after all its other files; the bytes are deterministic.

    Raises:
        FormatError: a reader would reject the manifest.
        WriteError: the operating system refused a write.
    """
    path, data = folder / MANIFEST_FILE, manifest_bytes(manifest)
    _from_json(parse_json(data, path), path)
    with Output(path, force=True).file() as temporary:
        temporary.write_bytes(data)


def manifest_bytes(manifest: Manifest) -> bytes:
    """Return the contents of `manifest.json`."""
    document = asdict(manifest)
    del document["checksum"]
    return checked_json(document)


def _from_json(document: object, path: Path) -> Manifest:
    with version_checked(document, MANIFEST_VERSION, path), within(path):
        manifest = record_from_json(Manifest, document)
        _check_names(manifest)
        _check_references(manifest)
        _check_files(manifest)
    return manifest


def _check_names(manifest: Manifest) -> None:
    """Check that names are unique; names of files even regardless of case, as on some file systems."""
    bank = manifest.bank
    names: dict[str, list[str]] = {
        "adapters": [adapter.name.casefold() for adapter in manifest.adapters],
        "files": [file.path.casefold() for file in manifest.files],
        "inputs": [record.name for record in manifest.inputs],
        "outputs": [record.name for record in manifest.outputs],
        "sites": [site.name for site in manifest.sites],
        "slots": [slot.name for slot in manifest.slots],
        "heads": [head.graph for head in manifest.heads],
        "bank.tensors": [] if bank is None else [tensor.name for tensor in bank.tensors],
    }
    for key, names_in_group in names.items():
        _check_unique(key, names_in_group)
    # a slot with the name of a data input could replace it
    fanout = manifest.fanout
    fed = {
        "slots": names["slots"],
        "bank.tensors": names["bank.tensors"],
        "bank": [] if bank is None else [bank.ids],
        "fanout": [] if fanout is None else [fanout.rows, *(value.name for value in fanout.values)],
    }
    _check_unique("fanout", [*fed["fanout"], *fed["bank"], *fed["bank.tensors"]])
    for key, names_in_group in fed.items():
        shared = sorted(f"`{name}`" for name in set(names_in_group) & set(names["inputs"]))
        if shared:
            raise FormatError("has the name of a data input", where=f"`$.{key}`", found=", ".join(shared))


def _check_references(manifest: Manifest) -> None:
    """Check that all names referenced in the manifest are defined in it."""
    outputs = {output.name for output in manifest.outputs}
    graphs, filled = {head.graph for head in manifest.heads}, {head.output for head in manifest.heads}
    _check_known("inputs", {record.next for record in manifest.inputs} - {None}, outputs)
    for record in manifest.inputs:
        if (record.role == "cache") != (record.next is not None):
            what = "only a cache, and each one, has an output that the next call takes"
            raise FormatError(what, where=f"`$.inputs`, `{record.name}`", found=f"role `{record.role}`")
    if manifest.generation is None and any(golden.written for golden in _golden_of(manifest)):
        expected = "`generation`, by which they were written"
        raise FormatError("has generated golden texts", where="`$.generation`", found="null", expected=expected)
    shapes = [record.axes for record in manifest.inputs] + [record.axes for record in manifest.outputs]
    _check_known("lengths", manifest.lengths, {axis for axes in shapes for axis in axes if isinstance(axis, str)})
    sites = {site.name for site in manifest.sites} | {HEAD, PREFIX, SHARED}
    _check_known("slots", {slot.site for slot in manifest.slots}, sites)
    for slot in manifest.slots:
        if len(slot.neutral) != len(slot.axes):
            raise FormatError(
                "has a default with another number of axes",
                where=f"`$.slots`, `{slot.name}`",
                found=number_of(len(slot.neutral), "axis", "axes"),
                expected=len(slot.axes),
            )
    _check_known("heads", filled, outputs)
    _check_known("heads", {slot.graph for slot in manifest.slots if slot.site == HEAD}, graphs)
    _check_known("checksums", {manifest.checksums} - {None}, outputs)
    _check_sketches(manifest)
    _check_golden(manifest.golden, outputs, manifest, "golden")
    _check_bank(manifest)
    _check_fanout(manifest)
    _check_known("counts_padding", manifest.counts_padding, {slot.graph for slot in manifest.slots})
    heads = {head.output: head.result for head in manifest.heads}
    _check_known("head", {manifest.head} - {None}, {each.name for each in manifest.adapters if each.task is not None})
    for index, adapter in enumerate(manifest.adapters):
        place = f"adapters[{index}]"
        _check_golden(adapter.golden, outputs, manifest, f"{place}.golden")
        _check_known(f"{place}.output", {adapter.output} - {None}, filled)
        if adapter.task is not None and heads.get(adapter.output or "") != adapter.task.output:
            raise FormatError(
                "the output does not match the task",
                where=f"`$.{place}`",
                found=adapter.output and f"`{adapter.output}` with `{heads[adapter.output]}`",
                expected=f"an output with `{adapter.task.output}`, for `{adapter.task.type}`",
            )
        if adapter.mix is not None:
            _check_mix(manifest, adapter.mix, f"{place}.mix")


def _golden_of(manifest: Manifest) -> list[GoldenRecord]:
    """Return the records of golden data, of the base and of adapters."""
    return [manifest.golden, *(adapter.golden for adapter in manifest.adapters)]


def _check_sketches(manifest: Manifest) -> None:
    """Check that sketches belong to outputs of the base with floats, and leave at least one axis to condense."""
    known = {output.name: output for output in manifest.base_outputs if output.dtype in FLOAT_TYPES}
    _check_known("sketches", manifest.sketches, {*known})
    for name, record in manifest.sketches.items():
        if record.axes >= len(known[name].axes):
            raise FormatError(
                "has as many axes as the output",
                where=f"`$.sketches.{name}.axes`",
                found=record.axes,
                expected=f"less than {len(known[name].axes)}",
            )
        if record.width > _MOST_SKETCHED:
            raise FormatError(
                "has too many numbers for each row",
                where=f"`$.sketches.{name}`",
                found=record.width,
                expected=f"at most {_MOST_SKETCHED}",
            )


def _check_golden(golden: GoldenRecord, outputs: set[str], manifest: Manifest, place: str) -> None:
    """Check the outputs named by golden data, and the graphs and cases named by recorded runs."""
    _check_known(f"{place}.absolute", golden.absolute, outputs)
    if golden.recorded:
        graphs = set() if manifest.recorded is None else {*manifest.graphs, BAKED}
        _check_known(f"{place}.recorded", golden.recorded, graphs)
    if golden.recorded and manifest.recorded is not None:
        _check_known("recorded.cases", manifest.recorded.cases, set(golden.cases))
    if golden.parts is not None:
        _check_unique(f"{place}.parts.cases", golden.parts.cases)
        _check_known(f"{place}.parts.parts", {part.output for part in golden.parts.parts}, set(golden.absolute))
    if golden.separation is not None:
        _check_known(f"{place}.separation.outputs", golden.separation.outputs, set(golden.absolute))


def _check_bank(manifest: Manifest) -> None:
    bank = manifest.bank
    if bank is None:
        _check_known("graphs", manifest.graphs, set[str](GRAPH_VARIANTS) - {"bank", "fanout"})
        return
    _check_known("bank.rows", set(bank.rows) - {None}, {adapter.name for adapter in manifest.adapters})
    slots = {slot.name for slot in manifest.slots}
    _check_known("bank.tensors", {tensor.slot for tensor in bank.tensors} - {None}, slots)
    if bank.rows[0] is not None or len(set(bank.rows)) != len(bank.rows):
        shown = ", ".join(map(str, bank.rows))
        raise FormatError("wrong rows", where="`$.bank.rows`", found=shown, expected="null, then adapters, each once")


def _check_fanout(manifest: Manifest) -> None:
    """Check that `fanout` has a bank, and that each of its values has a text axis."""
    fanout, first = manifest.fanout, {record.axes[:1] for record in manifest.inputs}
    if (fanout is None) != ("fanout" not in manifest.graphs) or (fanout is not None and "bank" not in manifest.graphs):
        raise FormatError(
            "a graph `fanout` needs a graph `bank` and a record `fanout`",
            where="`$.fanout`",
            found="null" if fanout is None else quoted(manifest.graphs),
        )
    for value in () if fanout is None else fanout.values:
        if len(first) != 1 or value.axes.count(*next(iter(first))) != 1:
            raise FormatError(
                "a value needs one text axis",
                where="`$.fanout.values`",
                found=f"`{value.name}` {list(value.axes)}",
                expected="the first axis of the data inputs, once",
            )


def _check_mix(manifest: Manifest, mix: MixRecord, place: str) -> None:
    """Check that the slots of fusion weights have a column for each member."""
    slots = {slot.name: slot for slot in manifest.slots}
    _check_known(f"{place}.slots", mix.slots, set(slots))
    _check_unique(f"{place}.members", mix.members)
    _check_unique(f"{place}.slots", mix.slots)
    for name in mix.slots:
        axes = slots[name].axes
        if len(axes) != 2 or not isinstance(axes[0], str) or axes[1] != len(mix.members):
            raise FormatError(
                "fusion weights do not match the shape of a slot",
                where=f"`$.{place}.slots`",
                found=f"`{name}` with shape {list(axes)}",
                expected=f"[rows, {len(mix.members)}], a column for each of its members",
            )


def _check_files(manifest: Manifest) -> None:
    """Check that every file named in the manifest has a hash: others could be replaced unnoticed."""
    listed = {file.path for file in manifest.files}
    if MANIFEST_FILE in listed:
        raise FormatError("the manifest lists itself", where="`$.files`", found=f"`{MANIFEST_FILE}`")
    if later := sorted(listed.intersection(UNLISTED)):
        raise FormatError("lists a file derived from the manifest", where="`$.files`", found=f"`{later[0]}`")
    _check_known("graphs", manifest.graphs.values(), listed)
    _check_known("fanout.prefix", [] if manifest.fanout is None else [manifest.fanout.prefix], listed)
    _check_known("golden.path", manifest.golden.files, listed)
    for index, adapter in enumerate(manifest.adapters):
        place = f"adapters[{index}]"
        source = [f"{adapter.source}/{name}" for name in _SOURCE_FILES]
        _check_known(place, [adapter.onnx_adapter, adapter.safetensors, *source], listed)
        _check_known(f"{place}.golden.path", adapter.golden.files, listed)
        _check_known(f"{place}.baked", {adapter.baked} - {None}, listed)
    for axis, lengths in manifest.lengths.items():
        ends = [end for end in (lengths.minimum, lengths.maximum) if end is not None]
        if not all(end in lengths for end in ends):
            raise FormatError(
                "lengths do not include their own bounds",
                where=f"`$.lengths.{axis}`",
                found=str(lengths),
                expected="a supported `minimum` and `maximum`",
            )
    if manifest.text is not None and manifest.max_tokens is None:
        raise FormatError(
            "has a tokenizer but no maximum length of texts",
            where="`$.lengths`",
            expected="a `maximum` for the token axis",
            fix="build the bundle again",
        )
    if manifest.text is not None:
        _check_known("text.tokenizer", [manifest.text.tokenizer], listed)
    if (manifest.text is None) != (manifest.golden_texts is None):
        raise FormatError(
            "a tokenizer and golden texts require each other",
            where="`$.golden_texts`",
            found=f"`{manifest.golden_texts}`" if manifest.golden_texts else "null",
            expected="both or neither",
            fix="build the bundle again",
        )
    _check_known("golden_texts", {manifest.golden_texts} - {None}, listed)
    _check_known("golden_batches", {manifest.golden_batches} - {None}, listed)
    _check_known("derivation", {manifest.derivation} - {None}, listed)
    if manifest.chat is not None:
        _check_known("chat", {manifest.chat.templates, manifest.chat.golden}, listed)
        if manifest.text is None:
            raise FormatError("chat templates need a tokenizer", where="`$.chat`", expected="`text`")
    if manifest.media is not None:
        media = manifest.media
        _check_known("media", {media.processor, media.golden} - {None}, listed)
        _check_known("media.input", [media.input], {record.name for record in manifest.inputs})
        if media.modality.has_rate != (media.sampling_rate is not None):
            raise FormatError("only audio has a sampling rate", where="`$.media.sampling_rate`")
        if (media.steps is None) != (media.golden is None):
            expected = "both or neither"
            raise FormatError("steps and golden media require each other", where="`$.media`", expected=expected)


def _check_unique(key: str, names: Iterable[str]) -> None:
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if twice:
        raise FormatError("a name occurs twice", where=f"`$.{key}`", found=quoted(twice))


def _check_known(key: str, references: Iterable[str | None], known: set[str]) -> None:
    unknown = sorted(f"`{name}`" for name in references if name not in known)
    if unknown:
        raise FormatError(
            "an undefined name",
            where=f"`$.{key}`",
            found=", ".join(unknown),
            expected=f"one of {', '.join(sorted(known)) or 'none'}",
        )


def list_files(folder: Path, hashed: Mapping[str, str] | None = None) -> tuple[FileRecord, ...]:
    """Return the records of a folder's files, without unlisted and hidden files, sorted by path.

    `hashed` maps paths to known SHA-256 digests.

    Raises:
        FileError: a file cannot be read.
    """
    paths = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    paths = {name: path for name, path in paths.items() if not is_hidden(name)}
    for name in UNLISTED:
        paths.pop(name, None)
    known = hashed or {}
    return tuple(
        FileRecord(name, known.get(name) or sha256_of(paths[name]), paths[name].stat().st_size)
        for name in sorted(paths)
    )


def _copy_file(path: Path, copy: Path, record: FileRecord) -> str:
    return copy_hashed(path, copy, record.bytes)


def verify_files(
    manifest: Manifest,
    folder: Path,
    *,
    copied: Collection[str] = (),
    into: Path | None = None,
    copy_file: Callable[[Path, Path, FileRecord], str] = _copy_file,
) -> None:
    """Check size and hash of every file in the manifest, and that there are no other files.

    The manifest has its own checksum; like all files, it must not be a link out of the folder. Hidden files and folders
    are ignored: operating systems create them.

    Args:
        manifest: the manifest.
        folder: the bundle.
        copied: paths of files to copy; the copies are verified.
        into: an empty folder for the copies.
        copy_file: copies a file to a path, and returns its SHA-256.

    Raises:
        FileError: a file is missing, or a link points out of the folder.
        FormatError: a file has another size, or is not listed.
        HashError: a file does not match its hash.
        OSError: a copy cannot be written.
    """
    _check_inside(folder / MANIFEST_FILE, folder)
    listed = {*UNLISTED, *(file.path for file in manifest.files)}
    try:  # the folder may disappear while the bundle is replaced
        paths = [path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()]  # a link is a file
    except OSError as error:
        raise unreadable(folder, error) from error
    files = {path.relative_to(folder).as_posix() for path in paths}
    extra = sorted(name for name in files - listed if not is_hidden(name))
    if extra:
        more = f" and {len(extra) - _SHOWN} more" if len(extra) > _SHOWN else ""
        raise FormatError(
            "has files that its manifest does not list",
            where=folder,
            found=quoted(extra[:_SHOWN]) + more,
            expected=f"`{MANIFEST_FILE}` and the {number_of(len(manifest.files), 'listed file')}",
            fix="move them out of the folder, or get the bundle from its source again",
        )
    for record in manifest.files:
        _check_record(record, folder)
        path = folder / record.path
        if into is None or record.path not in copied:
            digest = sha256_of(path)
        else:
            copy = into / record.path
            copy.parent.mkdir(parents=True, exist_ok=True)
            digest = copy_file(path, copy, record)
        if digest != record.sha256:
            raise HashError(path, found=digest, expected=record.sha256)


def is_hidden(name: str) -> bool:
    """Return whether a path in a bundle, with `/`, is a hidden file, as operating systems create them."""
    return any(part.startswith(".") for part in name.split("/"))


def _check_record(record: FileRecord, folder: Path) -> None:
    """Check that a file is in the bundle and has its size."""
    path = folder / record.path
    if not path.is_file():
        raise FileError(
            "is missing from the bundle",
            where=path,
            expected=f"{record.bytes} bytes",
            fix="copy the whole bundle again",
        )
    _check_inside(path, folder)
    try:
        size = path.stat().st_size
    except OSError as error:  # the bundle was replaced just now
        raise unreadable(path, error) from error
    if size != record.bytes:
        raise FormatError(
            "does not match its recorded size",
            where=path,
            found=f"{size} bytes",
            expected=f"{record.bytes} bytes",
            fix="get the file from its source again",
        )


def _check_inside(path: Path, folder: Path) -> None:
    if not path.resolve().is_relative_to(folder.resolve()):
        raise FileError(
            "is a link to a file outside the bundle",
            where=path,
            found=path.resolve(),
            expected=f"a file in {folder}",
            fix="replace the link by the file",
        )
