"""Send a bundle or an adapter to a hub or a registry, with a model card."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from adapter_export.errors import FileError, UsageError
from adapter_export.format.manifest_json import CARD_FILE, UNLISTED
from adapter_export.hub.artifact import HEADS, Kind, digest_of, kind_of, needed_files, read_whole
from adapter_export.hub.huggingface import Hub
from adapter_export.hub.reference import HubReference, parse_reference
from adapter_export.hub.registry import Registry
from adapter_export.reporting import SILENT, Reporter
from adapter_export.tables import Described


@dataclass(frozen=True, repr=False)
class Pushed(Described):
    """A pushed artifact.

    Attributes:
        reference: the reference that it was sent to.
        kind: a bundle or an adapter.
        pin: the digest of the registry's manifest, or the commit of the hub.
        digest: the sha256 of `manifest.json` or `adapter_graph.json`, which has those of all other files.
        files: what was sent, paths from the folder.
        bytes: of these files together.
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
        """The reference with its pin, which never changes its meaning."""
        return str(parse_reference(self.reference).pinned(self.pin))


def whole_artifact(folder: Path) -> Kind:
    """Return what lies in a folder; all its hashes are right.

    Raises:
        FileError, FormatError, HashError: neither a bundle nor an adapter, or it is damaged.
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
    """Send what lies in a folder; only the files that its format knows, and the card.

    Args:
        folder: of a bundle or an adapter.
        reference: where to; a tag or a branch that exists moves.
        card: the model card; none sends the `README.md` that is there, if there is one.
        licence: its name, for a registry's annotations.
        private: a repository of the hub that is made is for its owner alone.
        plain_http: as of `fetch`.
        reporter: receives the steps, and a note if the tag or branch has moved.

    Raises:
        UsageError: it is no reference, or one with a digest or a commit.
        RemoteError: the hub or the registry does not answer or does not take it.
        FileError, FormatError, HashError: there is no whole bundle or adapter.
    """
    where, kind = parse_reference(reference), whole_artifact(folder)
    if where.pin is not None:
        fix = "give a tag or a branch, or neither"
        raise UsageError("is immutable, so nothing can be sent there", where=where, fix=fix)
    digest, head = digest_of(folder, kind), HEADS[kind]
    also = [name for name in (UNLISTED if kind == "bundle" else (CARD_FILE,)) if (folder / name).is_file()]
    files = {name: folder / name for name in (head, *needed_files(folder, kind), *also)}
    with TemporaryDirectory(prefix="adapter-export-") as temporary:
        if card is not None:
            files[CARD_FILE] = Path(temporary, CARD_FILE)
            files[CARD_FILE].write_text(card, encoding="utf-8")
        size = sum(file.stat().st_size for file in files.values())
        reporter.step(f"sending {len(files)} files, {size / 1e6:,.1f} MB")
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
        reporter.note(f"`{where}` has moved: it was `{before}`, and is `{pin}` now")
    return Pushed(str(where), kind, pin, digest, tuple(sorted(files)), size)
