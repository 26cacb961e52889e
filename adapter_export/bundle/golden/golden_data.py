"""Golden data of adapters, computed by a reference: vectors, texts, media and batches, for `build` and `add`."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from adapter_export.bundle.bundle_reader import OpenedBundle
from adapter_export.bundle.golden.golden_batches import BatchMaker
from adapter_export.bundle.golden.golden_media import MediaMaker
from adapter_export.bundle.golden.golden_vectors import Golden, GoldenMaker
from adapter_export.bundle.golden.recorded_runs import Recording
from adapter_export.bundle.golden.separation import measure_separations, remarks
from adapter_export.bundle.proof.prove import prove_new
from adapter_export.bundle.report import BASE
from adapter_export.bundle.texts import TextMaker
from adapter_export.bundle.write import BundleWriter
from adapter_export.decoding import Decoding
from adapter_export.format.golden_batches import GoldenBatches
from adapter_export.format.golden_texts import GoldenTexts
from adapter_export.format.manifest import GoldenRecord, InputRecord, Manifest, WrittenRecord
from adapter_export.format.media import GoldenMedia, MediaRecord
from adapter_export.graph.adapter import Adapter
from adapter_export.numerics.runner import Arrays, Runner
from adapter_export.onnx_backend.slots import HeadSum, adapter_output
from adapter_export.reporting import SILENT, Reporter
from adapter_export.runtime.generation.decoder import Decoder
from adapter_export.runtime.generation.decoding_batch import WrittenRow
from adapter_export.text import Tokenizer


@dataclass(frozen=True)
class GoldenSets:
    """Golden data in files that several adapters share; each is `None` if absent."""

    texts: GoldenTexts | None = None
    batches: GoldenBatches | None = None
    media: GoldenMedia | None = None

    def write(self, writer: BundleWriter, manifest: Manifest) -> Manifest:
        """Write them into a bundle, replacing earlier ones, and return the manifest with their files."""
        if self.media is not None:
            writer.media(self.media)
        texts = manifest.golden_texts if self.texts is None else writer.texts(self.texts)
        return replace(manifest, golden_texts=texts, golden_batches=writer.batches(self.batches))


@dataclass(frozen=True)
class GoldenDataMaker:
    """Makes golden data of adapters.

    Attributes:
        vectors: makes golden vectors; has the reference, the cases and the allowance.
        heads: the outputs of heads.
        inputs: data inputs of the base.
        reporter: receives each step.
    """

    vectors: GoldenMaker
    heads: Sequence[HeadSum]
    inputs: Sequence[InputRecord]
    reporter: Reporter = SILENT

    @property
    def references(self) -> Runner:
        """Reference, which is never the exported graph."""
        return self.vectors.references

    def of_adapter(self, adapter: Adapter | None) -> Golden:
        """Return the golden vectors of an adapter; `None` is the base.

        Raises:
            BaseModelError: the reference returns NaN or Inf, or an output does not extend the cache it is paired with.
        """
        self._step(f"golden vectors of `{BASE if adapter is None else adapter.name}`")
        return self.vectors.make(adapter, adapter_output(self.heads, adapter), self.inputs)

    def texts(
        self,
        tokenizer: Tokenizer,
        library_texts: GoldenTexts | None,
        pairs: Sequence[tuple[Adapter, Golden]],
        pads: Mapping[str, bool],
    ) -> GoldenTexts:
        """Return golden texts of the base and of adapters.

        Args:
            tokenizer: tokenizer of the bundle.
            library_texts: ids of the texts from the model's own library, if known.
            pairs: adapters with their golden vectors.
            pads: whether rows of an adapter may be padded, by name.
        """
        self._step("golden texts")
        maker = TextMaker(
            tokenizer, library_texts, self.inputs, self.vectors.outputs, self.references, self.vectors.allowance, pads
        )
        return maker.all(pairs, self.heads)

    def media(self, record: MediaRecord, known: GoldenMedia, pairs: Sequence[tuple[Adapter, Golden]]) -> GoldenMedia:
        """Return golden media with the answers of additional adapters."""
        self._step("golden media")
        maker = MediaMaker(record, self.vectors.outputs, self.references, self.vectors.allowance)
        return maker.sets(known, pairs, self.heads)

    def batch_maker(self, manifest: Manifest, pads: Mapping[str, bool], graph: OpenedBundle) -> BatchMaker:
        """Return the maker of golden batches, for a manifest with the effect of padding."""
        self._step("golden batches")
        return BatchMaker(manifest, self.references, self.vectors.allowance, pads, graph)

    def _step(self, what: str) -> None:
        self.reporter.step(f"computing {what} with {self.references.description}")


_MOST_WRITTEN, _FEW_WRITTEN = 8, 4
"""Maximum number of tokens in a golden text, and that for a large base, whose weights are read for each token."""


class _Reference:
    """A reference with the interface of a session; `logits` are those of the last call, row by row, [words]."""

    def __init__(self, runner: Runner, adapters: Iterable[Adapter]) -> None:
        self._runner, self._adapters = runner, {adapter.name: adapter for adapter in adapters}
        self.output, self.logits = "", iter(np.zeros((0, 0), np.float32))

    @property
    def adapters(self) -> tuple[str, ...]:
        """Names of the adapters."""
        return tuple(self._adapters)

    def may_mix(self, adapters: Collection[str | None], /) -> bool:
        """Return whether rows with these adapters can run in one batch."""
        return len(adapters) == 1

    def run(
        self,
        inputs: Mapping[str, np.ndarray],
        adapter: str | None = None,
        /,
        *,
        adapters: object = None,  # noqa: ARG002 — all rows have one adapter
        allow_padding: bool = False,  # noqa: ARG002 — texts of one length have no padding
    ) -> Arrays:
        """Compute the outputs with an adapter."""
        outputs = self._runner.run(inputs, None if adapter is None else self._adapters[adapter])
        self.logits = iter(outputs[self.output][:, -1])
        return outputs


def add_generated_texts(
    manifest: Manifest, references: Runner, adapters: Sequence[Adapter], *, base: bool, brief: bool
) -> Manifest:
    """Return a manifest with generated golden texts of adapters and the `base`, if the base generates text.

    `brief` writes few tokens in each.
    """
    if manifest.generation is None:
        return manifest
    reference = _Reference(references, adapters)
    decoder = Decoder(reference, manifest)
    reference.output = decoder.inputs.logits.name

    def golden(record: GoldenRecord, name: str | None) -> GoldenRecord:
        # a token is decided if it stays the top one with both logits off by the budget, in opposite directions
        allowed = 2 * record.absolute[reference.output]
        prompts, most = decoder.sample_prompts(), _FEW_WRITTEN if brief else _MOST_WRITTEN
        texts = [WrittenRecord(tuple(ids), (), fill) for ids, fill in prompts]
        for places in _of_one_length(texts).values():  # rows of one length need no padding
            written = [decoder.golden_row(at, texts[place], name, Decoding(most)) for at, place in enumerate(places)]
            for place, tokens in zip(places, _generate(decoder, reference, written, allowed), strict=True):
                texts[place] = replace(texts[place], tokens=tokens)
        return replace(record, written=tuple(text for text in texts if text.tokens))

    new = set(reference.adapters)
    records = [
        replace(record, golden=golden(record.golden, record.name)) if record.name in new else record
        for record in manifest.adapters
    ]
    of_base = golden(manifest.golden, None) if base else manifest.golden
    return replace(manifest, golden=of_base, adapters=tuple(records))


def _of_one_length(texts: Sequence[WrittenRecord]) -> Mapping[int, list[int]]:
    """Return the places of the texts whose prompts have each length."""
    places: dict[int, list[int]] = {}
    for place, text in enumerate(texts):
        places.setdefault(len(text.prompt), []).append(place)
    return places


def _generate(
    decoder: Decoder, reference: _Reference, rows: Sequence[WrittenRow], allowed: float
) -> list[tuple[int, ...]]:
    """Return the tokens that a reference generates, with the end token, up to the first undecided one.

    A limit forces no last token: golden texts have the tokens that the logits decide. The prompts have one length, and
    `place` is the position of a row.
    """
    record = decoder.record
    texts: list[list[int]] = [[] for _ in rows]
    for row in decoder.write_rows(rows):
        logits = next(reference.logits).copy()
        tokens = texts[row.place]
        forced = record.first is not None and decoder.inputs.length(row.prompt, tokens) == 1
        never = record.suppressed
        if len(tokens) == int(record.first is not None and decoder.inputs.length(row.prompt, []) == 1):
            never += record.suppressed_first
        logits[list(never)] = -np.inf
        token = int(logits.argmax()) if row.finish == "end" else row.tokens[-1]
        if not forced and logits[token] - np.delete(logits, token).max(initial=-np.inf) <= allowed:
            row.abandoned = True
        else:
            tokens.append(record.first if forced and record.first is not None else token)
    return [tuple(tokens) for tokens in texts]


def prove_and_record(
    bundle: OpenedBundle,
    writer: BundleWriter,
    references: Runner | None,
    added: Iterable[Adapter],
    reporter: Reporter = SILENT,
    *,
    unchanged: Collection[str | None] = (),
) -> Manifest:
    """Verify a bundle that is being built, and return its manifest with the measurements.

    Args:
        bundle: the bundle, with its golden data.
        writer: writes golden parts into it.
        references: computes golden parts of the new adapters; `None` if there are none.
        added: the new adapters.
        reporter: receives each step, and notes on adapters without effect or that golden data barely show.
        unchanged: as for `prove_new`.

    Raises:
        ParityError: the bundle does not match the reference.
    """
    names = [adapter.name for adapter in added]
    reporter.step("measuring the separation of golden data")
    bundle.manifest = measure_separations(bundle, references, names, writer)
    reporter.step("verifying the bundle against its golden vectors")
    recording = Recording.of(bundle)
    prove_new(bundle, recording.runs, unchanged=unchanged)
    bundle.manifest = recording.recorded(bundle.manifest)
    for remark in remarks(bundle, names):
        reporter.warn(remark)
    return bundle.manifest
