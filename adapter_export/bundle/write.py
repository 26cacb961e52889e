"""Write the files of a bundle for `build` and `add`: graphs, adapters, golden vectors, the manifest."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from adapter_export.bundle.golden.golden_parts import GoldenParts, write_parts
from adapter_export.bundle.golden.golden_vectors import Golden, write_golden
from adapter_export.bundle.report import BASE
from adapter_export.dtypes import AdapterPrecision, narrowed
from adapter_export.errors import AdapterError, BaseMismatchError, OutputExistsError
from adapter_export.format.adapter_files import write_adapter
from adapter_export.format.generation import GOLDEN_CHATS_FILE, GoldenChats, golden_chats_json
from adapter_export.format.golden_batches import GoldenBatches, golden_batches_json
from adapter_export.format.golden_texts import GoldenTexts, golden_texts_json
from adapter_export.format.manifest import (
    AdapterRecord,
    GoldenRecord,
    Manifest,
    MixRecord,
    PartsRecord,
)
from adapter_export.format.manifest_json import list_files, write_manifest
from adapter_export.format.media import GOLDEN_MEDIA_FILE, GoldenMedia, golden_media_json
from adapter_export.format.readme import write_readme
from adapter_export.format.tensors import write_tensors
from adapter_export.graph.adapter import Adapter
from adapter_export.graph.compose.sums import MIX, weighted_members
from adapter_export.graph.tasks import CAUSAL_LM
from adapter_export.onnx_backend.base.onnx_base import OnnxBase
from adapter_export.onnx_backend.slots import HeadSum, SlotPlan, adapter_output, slot_tensors, topology_key
from adapter_export.runtime.adapter_file import write_adapter_file
from adapter_export.safe_io.output import Output
from adapter_export.words import argument, quoted

GOLDEN_TEXTS_FILE = "golden/texts.json"

GOLDEN_BATCHES_FILE = "golden/batches.json"


@dataclass(frozen=True)
class BundleWriter:
    """Writes into a staged bundle; `heads` are the outputs of heads."""

    folder: Path
    plan: SlotPlan
    heads: Sequence[HeadSum]
    model_version: int

    def golden(self, golden: Golden) -> GoldenRecord:
        """Write the golden vectors of an adapter, or of the base."""
        path = f"golden/{golden.adapter or BASE}.safetensors"
        self._new(path)
        return write_golden(golden, self.folder, path)

    def adapter(
        self, adapter: Adapter, golden: Golden, baked: str | None = None, precision: AdapterPrecision = "float32"
    ) -> AdapterRecord:
        """Write all files of one adapter except its baked graph; it has been rounded to the precision of its files.

        Raises:
            AdapterError: the graph has no slots for it.
            WriteError: the operating system refused a write.
        """
        tensors = slot_tensors(self.plan, adapter)
        source = f"adapters/{adapter.name}"
        write_adapter_file(self._new(f"{source}.onnx_adapter"), tensors, self.model_version, precision)
        write_tensors(self._new(f"{source}.safetensors"), narrowed(tensors, precision))
        write_adapter(adapter, self.folder / source, precision=precision)
        return AdapterRecord(
            name=adapter.name,
            kind=adapter.kind,
            parameters=adapter.cost().parameters,
            onnx_adapter=f"{source}.onnx_adapter",
            safetensors=f"{source}.safetensors",
            source=source,
            base=adapter.base,
            golden=self.golden(golden),
            task=adapter.task,
            output=adapter_output(self.heads, adapter),
            baked=baked,
            mix=mix_record(self.plan, adapter),
            precision=precision,
        )

    def parts(self, parts: GoldenParts) -> PartsRecord:
        """Write the golden parts of an adapter."""
        path = f"golden/parts/{parts.adapter}.safetensors"
        self._new(path)
        return write_parts(parts, self.folder, path)

    def texts(self, texts: GoldenTexts) -> str:
        """Write golden texts, replacing earlier ones, and return their path."""
        with Output(self.folder / GOLDEN_TEXTS_FILE, force=True).file() as temporary:
            temporary.write_bytes(golden_texts_json(texts))
        return GOLDEN_TEXTS_FILE

    def batches(self, batches: GoldenBatches | None) -> str | None:
        """Write golden batches, replacing earlier ones, and return their path; `None` removes them."""
        path = self.folder / GOLDEN_BATCHES_FILE
        if batches is None:
            path.unlink(missing_ok=True)
            return None
        with Output(path, force=True).file() as temporary:
            temporary.write_bytes(golden_batches_json(batches))
        return GOLDEN_BATCHES_FILE

    def media(self, media: GoldenMedia) -> None:
        """Write golden media, replacing earlier ones."""
        with Output(self.folder / GOLDEN_MEDIA_FILE, force=True).file() as temporary:
            temporary.write_bytes(golden_media_json(media))

    def chats(self, chats: GoldenChats) -> None:
        """Write golden chats."""
        self._new(GOLDEN_CHATS_FILE).write_bytes(golden_chats_json(chats))

    def manifest(self, manifest: Manifest, hashed: Mapping[str, str]) -> Manifest:
        """Write the manifest with all files, and the README; `hashed` has the SHA-256 of files hashed before."""
        manifest = replace(manifest, files=list_files(self.folder, hashed))
        write_manifest(manifest, self.folder)
        write_readme(self.folder, manifest)
        return manifest

    def _new(self, path: str) -> Path:
        """Return a path without a file: files of a bundle may be hard links and must not be written in place."""
        file = self.folder / path
        if file.exists():
            raise OutputExistsError(file)
        file.parent.mkdir(parents=True, exist_ok=True)
        return file


def mix_record(plan: SlotPlan, adapter: Adapter) -> MixRecord | None:
    """Return the interface for member weights of a weighted fusion, or `None` for any other adapter."""
    members = weighted_members(adapter)
    if members is None:
        return None
    keys = {(owner, topology_key(graph)) for owner, graph, _ in adapter.components()}
    groups = [group for group in plan.groups if (group.owner, group.key) in keys and MIX in group.graph.parameters]
    return MixRecord(tuple(dict.fromkeys(group.slot(MIX) for group in groups)), members)


_UNSAID = (0, 1)
"""Values that other programs write by default, and that would not identify a graph."""


def model_version(base: OnnxBase, plan: SlotPlan) -> int:
    """Return the `model_version` of a graph with slots and of every adapter file that fits it."""
    return model_version_of(base.fingerprint, plan, None if base.given_sites is None else base.given_sites.digest)


def model_version_of(fingerprint: str, plan: SlotPlan, site_map: str | None) -> int:
    """Return 31 bits of a SHA-256 over everything an adapter file depends on, as a positive int32.

    That is the fingerprint of the base, the topology of the slots and the digest of the site map, if any, but not the
    precision of the base: adapters of one precision fit another.
    """
    digest = hashlib.sha256("\n".join((fingerprint, plan.digest, site_map or "")).encode()).digest()
    # ONNX Runtime's adapter files store an int32
    number = int.from_bytes(digest[:4], "little") & 0x7FFFFFFF
    return number if number not in _UNSAID else number + len(_UNSAID)


def check_bases(adapters: Sequence[Adapter], fingerprint: str, *, allow_mismatch: bool) -> None:
    """Raise a `BaseMismatchError` for an adapter of another base, if that is not allowed."""
    for adapter in adapters:
        if adapter.base != fingerprint and not allow_mismatch:
            raise BaseMismatchError(adapter.name, found=adapter.base, expected=fingerprint)


def check_texts(adapters: Sequence[Adapter], digest: str, max_tokens: int) -> None:
    """Raise an `AdapterError` for an adapter whose texts would be encoded differently than in training.

    That is an adapter trained with another tokenizer than that of `digest`, or on more tokens than the bundle accepts.
    """
    for adapter in adapters:
        tokenizer, longest = _texts_of(adapter)
        if tokenizer not in (None, digest):
            raise AdapterError(
                "was trained with another tokenizer",
                where=f"adapter `{adapter.name}`",
                found=f"a tokenizer with digest {digest[:12]}…",
                expected=f"{str(tokenizer)[:12]}…",
                fix="pass the `tokenizer.json` that it was trained with: " + argument("tokenizer", words="PATH"),
            )
        if (longest or 0) > max_tokens:
            raise AdapterError(
                "was trained on longer texts than the bundle accepts",
                where=f"adapter `{adapter.name}`",
                found=f"at most {max_tokens} tokens",
                expected=f"{longest}",
                fix="pass " + argument("max_tokens", longest) + " or more, or use an adapter with a smaller limit",
            )


def _texts_of(adapter: Adapter) -> tuple[str | None, int | None]:
    """Return the tokenizer digest and the maximum length of an adapter's training; `None` if unknown.

    They come from the head's task, or without a head from the training record.
    """
    if adapter.task is not None:
        return adapter.task.tokenizer, adapter.task.max_tokens
    settings = adapter.training.get("settings") if adapter.training.get("task") == CAUSAL_LM else None
    known = settings if isinstance(settings, Mapping) else {}
    digest, most = known.get("tokenizer"), known.get("max_tokens")
    return digest if isinstance(digest, str) else None, most if isinstance(most, int) else None


def check_names(names: Sequence[str], existing: Sequence[str] = ()) -> None:
    """Reject names of new adapters that collide as file names; `existing` are the names in the bundle.

    Raises:
        AdapterError: a name occurs twice, or is that of the base.
    """
    counts = Counter(name.casefold() for name in (*existing, *names))
    twice = [name for name in names if counts[name.casefold()] > 1]
    if twice:
        folded = {name.casefold() for name in twice}
        raise AdapterError(
            "the bundle has an adapter with this name" if existing else "two adapters have the same name",
            found=quoted(dict.fromkeys([*twice, *(name for name in existing if name.casefold() in folded)])),
            expected="names that differ in more than case",
            fix="remove the old one first, or add the new one under another name, `other=FOLDER`: a route of the "
            "server then replaces the old one without downtime"
            if existing
            else "rename the folder of one of them",
        )
    if BASE in counts:
        raise AdapterError(f"`{BASE}` is reserved for the base", fix="rename the adapter")
