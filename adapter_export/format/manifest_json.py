"""A bundle's manifest on disk, `manifest.json`, and the files that it lists.

Specified in `docs/reference/format.md`.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

from adapter_export.errors import FileError, FormatError, HashError, quoted, within
from adapter_export.format.files import check_checksum, checked_json
from adapter_export.format.manifest import BAKED, GRAPH_VARIANTS, FileRecord, GoldenRecord, Manifest, MixRecord
from adapter_export.format.records import record_from_json, version_checked
from adapter_export.graph.adapter import HEAD, SHARED
from adapter_export.safe_io.documents import parse_json
from adapter_export.safe_io.output import Output
from adapter_export.safe_io.regular_files import copy_hashed, read_bytes, sha256_of, unreadable

MANIFEST_VERSION = "1.0.0"
"""The version of the manifest format that is written, and the newest that is read."""

MANIFEST_FILE = "manifest.json"

SIGNATURE_FILE = "model.sig"
"""The signature of a bundle, which covers its manifest and cannot be listed there."""

REPORT_FILE = "check.json"
"""A report of `check`, which names the manifest by its hash and cannot be listed there; the signature covers it."""

CARD_FILE = "README.md"
"""The README that a build writes, or a model card. It has the digest of the manifest, which cannot list it."""

UNLISTED = (MANIFEST_FILE, SIGNATURE_FILE, REPORT_FILE, CARD_FILE)
"""The files of a bundle that its manifest does not list."""

_SOURCE_FILES = ("adapter_graph.json", "weights.safetensors")

Opened = TypeVar("Opened")

_SHOWN = 5
"""Maximum number of files that a message names."""


def read_manifest(folder: Path, *, expect: str | None = None) -> Manifest:
    """Read the manifest of a bundle. The files that it lists are not looked at: `verify_files` does that.

    Args:
        folder: of the bundle.
        expect: the sha256 that the file must have; with the hashes in it, that of the whole bundle.

    Raises:
        FileError: the folder or the manifest is missing or cannot be read.
        FormatError: it breaks the format; the message gives the JSON path. `VersionError` is a kind of it.
        HashError: it was changed since it was written, or it is not the one that is expected.
    """
    path = folder / MANIFEST_FILE
    if not path.is_file():  # a pipe would never end
        raise FileError(
            "is not a bundle", where=folder, expected=f"a folder with `{MANIFEST_FILE}`", fix="check the path"
        )
    data = read_bytes(path)
    found = hashlib.sha256(data).hexdigest()
    if expect is not None and found != expect.removeprefix("sha256:").lower():
        fix = "deploy the bundle that was approved, or approve this one"
        raise HashError(path, "is not that of the bundle that is expected", found=found, expected=expect, fix=fix)
    manifest = _from_json(parse_json(data, path), path)
    check_checksum(data, manifest.checksum, path)
    return manifest


def open_whole(folder: Path, opened: Callable[[Manifest], Opened], *, expect: str | None = None) -> Opened:
    """Read the manifest of a bundle and open what it describes; again, if the bundle was exchanged meanwhile.

    While a bundle is replaced, a reader may see the files of one bundle and the manifest of the other.

    Args:
        folder: of the bundle.
        opened: opens it; it compares the files with their hashes.
        expect: as of `read_manifest`.

    Raises:
        FileError, FormatError, HashError: as `read_manifest` and `opened`.
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
    """Write the manifest of a bundle, after all other files of it; the same manifest always gives the same bytes.

    Raises:
        FormatError: the manifest says what its reader would refuse.
        WriteError: the operating system refused.
    """
    path, data = folder / MANIFEST_FILE, manifest_bytes(manifest)
    _from_json(parse_json(data, path), path)
    with Output(path, force=True).file() as temporary:
        temporary.write_bytes(data)


def manifest_bytes(manifest: Manifest) -> bytes:
    """Return the file of a manifest."""
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
    """Names are unique; those of files may not even differ in case alone: not every file system tells them apart."""
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
    for key, found in names.items():
        _check_unique(key, found)
    # what is fed by name has a name of its own: a tensor of an adapter could replace an input of the data
    fanout = manifest.fanout
    fed = {
        "slots": names["slots"],
        "bank.tensors": names["bank.tensors"],
        "bank": [] if bank is None else [bank.ids],
        "fanout": [] if fanout is None else [fanout.rows, *(value.name for value in fanout.values)],
    }
    _check_unique("fanout", [*fed["fanout"], *fed["bank"], *fed["bank.tensors"]])
    for key, found in fed.items():
        taken = sorted(f"`{name}`" for name in set(found) & set(names["inputs"]))
        if taken:
            raise FormatError("has the name of a data input", where=f"`$.{key}`", found=", ".join(taken))


def _check_references(manifest: Manifest) -> None:
    """Check that every name in the manifest is defined in it."""
    outputs = {output.name for output in manifest.outputs}
    graphs, filled = {head.graph for head in manifest.heads}, {head.output for head in manifest.heads}
    _check_known("inputs", {record.next for record in manifest.inputs} - {None}, outputs)
    shapes = [record.axes for record in manifest.inputs] + [record.axes for record in manifest.outputs]
    _check_known("lengths", manifest.lengths, {axis for axes in shapes for axis in axes if isinstance(axis, str)})
    sites = {site.name for site in manifest.sites} | {HEAD, SHARED}
    _check_known("slots", {slot.site for slot in manifest.slots}, sites)
    _check_known("heads", filled, outputs)
    _check_known("heads", {slot.graph for slot in manifest.slots if slot.site == HEAD}, graphs)
    _check_known("checksums", {manifest.checksums} - {None}, outputs)
    _check_golden(manifest.golden, outputs, manifest, "golden")
    _check_bank(manifest)
    _check_fanout(manifest)
    _check_known("counts_padding", manifest.counts_padding, {slot.graph for slot in manifest.slots})
    heads = {head.output: head.result for head in manifest.heads}
    _check_known("head", {manifest.head} - {None}, {one.name for one in manifest.adapters if one.task is not None})
    for index, adapter in enumerate(manifest.adapters):
        place = f"adapters[{index}]"
        _check_golden(adapter.golden, outputs, manifest, f"{place}.golden")
        _check_known(f"{place}.output", {adapter.output} - {None}, filled)
        if adapter.task is not None and heads.get(adapter.output or "") != adapter.task.output:
            raise FormatError(
                "an output that a task does not have",
                where=f"`$.{place}`",
                found=adapter.output and f"`{adapter.output}`, which holds `{heads[adapter.output]}`",
                expected=f"one that holds `{adapter.task.output}`, for `{adapter.task.type}`",
            )
        if adapter.mix is not None:
            _check_mix(manifest, adapter.mix, f"{place}.mix")


def _check_golden(golden: GoldenRecord, outputs: set[str], manifest: Manifest, place: str) -> None:
    """Golden data name outputs, and recorded runs name graphs and golden cases."""
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
        found = ", ".join(map(str, bank.rows))
        raise FormatError("wrong rows", where="`$.bank.rows`", found=found, expected="null, then adapters, each once")


def _check_fanout(manifest: Manifest) -> None:
    """Its graph is fed with rows of the bank, and each value that it takes has an axis of the texts."""
    fanout, first = manifest.fanout, {record.axes[:1] for record in manifest.inputs}
    if (fanout is None) != ("fanout" not in manifest.graphs) or (fanout is not None and "bank" not in manifest.graphs):
        raise FormatError(
            "a graph `fanout` goes with a graph `bank`, and with a record of its own",
            where="`$.fanout`",
            found="null" if fanout is None else quoted(manifest.graphs),
        )
    for value in () if fanout is None else fanout.values:
        if len(first) != 1 or value.axes.count(*next(iter(first))) != 1:
            raise FormatError(
                "a value without one axis of the texts",
                where="`$.fanout.values`",
                found=f"`{value.name}` {list(value.axes)}",
                expected="the first axis of the data inputs, once",
            )


def _check_mix(manifest: Manifest, mix: MixRecord, place: str) -> None:
    """Weights that a request gives have a column for each member in every slot that they go to."""
    slots = {slot.name: slot for slot in manifest.slots}
    _check_known(f"{place}.slots", mix.slots, set(slots))
    _check_unique(f"{place}.members", mix.members)
    _check_unique(f"{place}.slots", mix.slots)
    for name in mix.slots:
        axes = slots[name].axes
        if len(axes) != 2 or not isinstance(axes[0], str) or axes[1] != len(mix.members):
            raise FormatError(
                "weights of a fusion go to a slot of another shape",
                where=f"`$.{place}.slots`",
                found=f"`{name}` with shape {list(axes)}",
                expected=f"[rows, {len(mix.members)}], a column for each of its members",
            )


def _check_files(manifest: Manifest) -> None:
    """Check that every file that the manifest names has a hash: one without could be exchanged unseen."""
    listed = {file.path for file in manifest.files}
    if MANIFEST_FILE in listed:
        raise FormatError("the manifest lists itself", where="`$.files`", found=f"`{MANIFEST_FILE}`")
    if later := sorted(listed.intersection(UNLISTED)):
        raise FormatError("lists what is made from the manifest", where="`$.files`", found=f"`{later[0]}`")
    _check_known("graphs", manifest.graphs.values(), listed)
    _check_known("fanout.prefix", [] if manifest.fanout is None else [manifest.fanout.prefix], listed)
    _check_known("golden.path", manifest.golden.files, listed)
    for index, adapter in enumerate(manifest.adapters):
        place = f"adapters[{index}]"
        source = [f"{adapter.source}/{name}" for name in _SOURCE_FILES]
        _check_known(place, [adapter.onnx_adapter, adapter.safetensors, *source], listed)
        _check_known(f"{place}.golden.path", adapter.golden.files, listed)
        _check_known(f"{place}.baked", {adapter.baked} - {None}, listed)
    for axis, own in manifest.lengths.items():
        ends = [end for end in (own.minimum, own.maximum) if end is not None]
        if not all(end in own for end in ends):
            raise FormatError(
                "are lengths that begin or end with one that is none of them",
                where=f"`$.lengths.{axis}`",
                found=str(own),
                expected="a `minimum` and a `maximum` that the axis may have",
            )
    if manifest.text is not None and manifest.max_tokens is None:
        raise FormatError(
            "has a tokenizer, and does not say how long a text may be",
            where="`$.lengths`",
            expected="a `maximum` of the axis of the tokens",
            fix="build the bundle again",
        )
    if manifest.text is not None:
        _check_known("text.tokenizer", [manifest.text.tokenizer], listed)
    if (manifest.text is None) != (manifest.golden_texts is None):
        raise FormatError(
            "a tokenizer and golden texts do not go together",
            where="`$.golden_texts`",
            found=f"`{manifest.golden_texts}`" if manifest.golden_texts else "null",
            expected="golden texts where there is a tokenizer, and nowhere else",
            fix="build the bundle again",
        )
    _check_known("golden_texts", {manifest.golden_texts} - {None}, listed)
    _check_known("golden_batches", {manifest.golden_batches} - {None}, listed)
    _check_known("derivation", {manifest.derivation} - {None}, listed)
    if manifest.media is not None:
        media = manifest.media
        _check_known("media", {media.processor, media.golden} - {None}, listed)
        _check_known("media.input", [media.input], {record.name for record in manifest.inputs})
        if media.modality.has_rate != (media.sampling_rate is not None):
            raise FormatError("only audio has a sampling rate", where="`$.media.sampling_rate`")
        if (media.steps is None) != (media.golden is None):
            expected = "golden media where steps are known, and nowhere else"
            raise FormatError("steps and golden media do not go together", where="`$.media`", expected=expected)


def _check_unique(key: str, names: Iterable[str]) -> None:
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if twice:
        raise FormatError("a name occurs twice", where=f"`$.{key}`", found=quoted(twice))


def _check_known(key: str, found: Iterable[str | None], known: set[str]) -> None:
    unknown = sorted(f"`{name}`" for name in found if name not in known)
    if unknown:
        raise FormatError(
            "a name that stands nowhere else in the manifest",
            where=f"`$.{key}`",
            found=", ".join(unknown),
            expected=f"one of {', '.join(sorted(known)) or 'none'}",
        )


def list_files(folder: Path, hashed: Mapping[str, str] | None = None) -> tuple[FileRecord, ...]:
    """Return every file in a folder but its manifest, what is made from that, and what is hidden, sorted by path.

    `hashed` has the sha256 of files that were hashed already, by path.

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


def verify_files(manifest: Manifest, folder: Path, *, copied: Collection[str] = (), into: Path | None = None) -> None:
    """Check the size and the hash of every file that the manifest lists, and that there are no others.

    The manifest has a checksum of its own; like the others it must be no link that leads out. Files and folders with a
    name that begins with a dot are passed over: systems put them there by themselves.

    Args:
        manifest: of the bundle.
        folder: of the bundle.
        copied: the paths of files to copy on the way: the bytes that are compared are those of the copy.
        into: an empty folder for them.

    Raises:
        FileError: a file is missing, or a link leads out of the folder.
        FormatError: a file has another size, or is not listed.
        HashError: a file has other bytes.
        OSError: a copy cannot be written.
    """
    _check_inside(folder / MANIFEST_FILE, folder)
    listed = {*UNLISTED, *(file.path for file in manifest.files)}
    try:  # a folder may go while its bundle is exchanged
        found = [path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()]  # a link is a file
    except OSError as error:
        raise unreadable(folder, error) from error
    files = {path.relative_to(folder).as_posix() for path in found}
    extra = sorted(name for name in files - listed if not is_hidden(name))
    if extra:
        more = f" and {len(extra) - _SHOWN} more" if len(extra) > _SHOWN else ""
        raise FormatError(
            "has files that its manifest does not list",
            where=folder,
            found=quoted(extra[:_SHOWN]) + more,
            expected=f"`{MANIFEST_FILE}` and the {len(manifest.files)} files that it lists",
            fix="move them out of the folder, or take the bundle from its source again",
        )
    for record in manifest.files:
        _verify(record, folder, into / record.path if into is not None and record.path in copied else None)


def is_hidden(name: str) -> bool:
    """Return whether a path in a bundle, with `/`, is a file that operating systems add by themselves."""
    return any(part.startswith(".") for part in name.split("/"))


def _verify(record: FileRecord, folder: Path, copy: Path | None) -> None:
    path = folder / record.path
    if not path.is_file():
        raise FileError(
            "is missing in the bundle", where=path, expected=f"{record.bytes} bytes", fix="copy the whole bundle again"
        )
    _check_inside(path, folder)
    try:
        size = path.stat().st_size
    except OSError as error:  # it was exchanged just now
        raise unreadable(path, error) from error
    if size != record.bytes:
        raise FormatError(
            "has another size than when it was written",
            where=path,
            found=f"{size} bytes",
            expected=f"{record.bytes} bytes",
            fix="get the file from its source again",
        )
    if copy is None:
        found = sha256_of(path)
    else:
        copy.parent.mkdir(parents=True, exist_ok=True)
        found = copy_hashed(path, copy, record.bytes)
    if found != record.sha256:
        raise HashError(path, found=found, expected=record.sha256)


def _check_inside(path: Path, folder: Path) -> None:
    if not path.resolve().is_relative_to(folder.resolve()):
        raise FileError(
            "is a link that leads out of the bundle",
            where=path,
            found=path.resolve(),
            expected=f"a file in {folder}",
            fix="put the file itself in its place",
        )
