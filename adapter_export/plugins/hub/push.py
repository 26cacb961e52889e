"""Upload of bundles and adapters to a hub or registry, with a model card."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from adapter_export.errors import FileError, UsageError
from adapter_export.format.manifest_json import CARD_FILE, UNLISTED
from adapter_export.plugins.hub.artifact import HEADS, Kind, digest_of, kind_of, needed_files, read_whole
from adapter_export.plugins.hub.huggingface import Hub
from adapter_export.plugins.hub.reference import HubReference, parse_reference
from adapter_export.plugins.hub.registry import Registry
from adapter_export.reporting import SILENT, Reporter
from adapter_export.safe_io.temporary import temporary_folder
from adapter_export.tables import Described, number_of


@dataclass(frozen=True, repr=False)
class Pushed(Described):
    """A pushed artifact.

    Attributes:
        reference: destination.
        kind: bundle or adapter.
        pin: digest of the registry's manifest, or commit of the hub.
        digest: SHA-256 of `manifest.json` or `adapter_graph.json`, which contains those of all other files.
        files: uploaded files, paths relative to the folder.
        bytes: total size.
    """

    reference: str
    kind: Kind
    pin: str
    digest: str
    files: tuple[str, ...]
    bytes: int

    def described(self) -> Mapping[str, object]:
        """Return the facts of `repr` and notebooks."""
        facts: dict[str, object] = {"reference": self.reference, "kind": self.kind, "files": len(self.files)}
        return {**facts, "bytes": self.bytes, "digest": self.digest}

    @property
    def pinned(self) -> str:
        """Immutable reference with its pin."""
        return str(parse_reference(self.reference).pinned(self.pin))


def whole_artifact(folder: Path) -> Kind:
    """Return the kind of artifact in a folder, after verifying all hashes.

    Raises:
        FileError, FormatError, HashError: the folder is not a bundle or adapter, or is damaged.
    """
    if not folder.is_dir():
        raise FileError("is not a folder", where=folder, expected="a bundle, or the folder of an adapter")
    kind = kind_of({path.name for path in folder.iterdir()}, folder)
    read_whole(folder, kind)
    return kind


def push_folder(
    folder: Path,
    reference: str,
    *,
    card: str | None,
    licence: str | None,
    private: bool,
    plain_http: bool,
    reporter: Reporter = SILENT,
) -> Pushed:
    """Upload the artifact in a folder: only files known to its format, and the card.

    Args:
        folder: a bundle or adapter.
        reference: destination; an existing tag or branch moves.
        card: model card. Default: the folder's `README.md`, if any.
        licence: licence name for a registry's annotations.
        private: whether a new repository of the hub is private.
        plain_http: see `fetch`.
        reporter: receives the steps, and a note if the tag or branch has moved.

    Raises:
        UsageError: the reference is invalid, or contains a digest or commit.
        RemoteError: the hub or registry does not respond, or rejects the request.
        FileError, FormatError, HashError: the artifact is incomplete or damaged.
    """
    where, kind = parse_reference(reference), whole_artifact(folder)
    if where.pin is not None:
        fix = "pass a tag or a branch, or neither"
        raise UsageError("is immutable and cannot be overwritten", where=where, fix=fix)
    digest, head = digest_of(folder, kind), HEADS[kind]
    also = [name for name in (UNLISTED if kind == "bundle" else (CARD_FILE,)) if (folder / name).is_file()]
    files = {name: folder / name for name in (head, *needed_files(folder, kind), *also)}
    with temporary_folder() as temporary:
        if card is not None:
            files[CARD_FILE] = temporary / CARD_FILE
            files[CARD_FILE].write_text(card, encoding="utf-8")
        size = sum(file.stat().st_size for file in files.values())
        reporter.step(f"uploading {number_of(len(files), 'file')}, {size / 1e6:,.1f} MB")
        if isinstance(where, HubReference):
            hub = Hub(where)
            before = hub.current()
            pin = hub.push(files, private=private, message=f"Push {kind} {digest[:12]}")
        else:
            annotations = {"adapter-export.digest": f"sha256:{digest}"}
            if licence is not None:
                annotations["org.opencontainers.image.licenses"] = licence
            with Registry(where, plain_http=plain_http) as registry:
                before = registry.current()
                pin = registry.push(kind, files, annotations)
    if before is not None and before != pin:
        reporter.warn(f"`{where}` has moved: it was `{before}`, and is `{pin}` now")
    return Pushed(str(where), kind, pin, digest, tuple(sorted(files)), size)
