"""The inputs and outputs of a graph that generates: token ids, masks, caches and logits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from adapter_export.errors import RequestError
from adapter_export.format.axes import names
from adapter_export.format.generation import GenerationRecord
from adapter_export.format.lengths import axis_lengths
from adapter_export.format.manifest import InputRecord, Manifest, OutputRecord
from adapter_export.words import argument

_OF_TOKENS = 4
"""Axes of keys or values of tokens: rows, heads, tokens, width."""


@dataclass(frozen=True)
class DecoderInputs:
    """The roles of a decoder's inputs and outputs.

    Attributes:
        ids: the new tokens of each row.
        mask: covers past and new tokens; `None` if the graph has none.
        logits: the output [rows, new tokens, words].
        source: the tokens that an encoder reads; `None` for a decoder without one.
        media: the windows of a file that an encoder reads, [rows, windows, …]; `None` without such an encoder. Prompts
            are then what the decoder reads.
        source_mask: the mask of `source`, if there is one.
        caches: the keys and values of earlier tokens, with the axis along which each grows.
        record: the tokens that begin, end and pad a text.
        longest: the most tokens of a prompt and its text; `None` if there is no limit. For an encoder–decoder, of the
            token that begins a text and the text.
        longest_prompt: the most tokens of a prompt; `None` if there is no limit.
    """

    ids: InputRecord
    mask: InputRecord | None
    logits: OutputRecord
    source: InputRecord | None
    source_mask: InputRecord | None
    media: InputRecord | None
    caches: Mapping[InputRecord, int]
    record: GenerationRecord
    longest: int | None
    longest_prompt: int | None

    @classmethod
    def of(cls, manifest: Manifest) -> DecoderInputs:
        """Find the roles in a manifest; RequestError if the bundle does not generate."""
        source, media = _source(manifest), _media(manifest)
        source_mask = None if source is None else _mask_of(source, manifest)
        ids, mask, logits = _roles(manifest, {source, source_mask, media})
        record = manifest.generation or GenerationRecord()
        if (source or media) is not None and record.start is None:
            raise RequestError("the token with which the decoder begins is unknown", fix="capture the base again")
        caches = {cache: _past_axis(cache, ids.axes[1]) for cache in manifest.inputs if cache.role == "cache"}
        sums = [axis for axis in manifest.lengths if len(names(axis)) > 1 and ids.axes[1] in names(axis)]
        total = mask.axes[1] if mask is not None else next(iter(sums), ids.axes[1])
        longest = axis_lengths(total, manifest.lengths).maximum
        longest_prompt = None if longest is None else longest - 1
        if source is not None:
            longest_prompt = axis_lengths(source.axes[1], manifest.lengths).maximum
        return cls(ids, mask, logits, source, source_mask, media, caches, record, longest, longest_prompt)

    @property
    def states(self) -> int:
        """The states of a file that each row caches; 0 without an encoder of files."""
        sizes = [cache.axes[axis + 1] for cache, axis in self.caches.items() if cache not in self.growing]
        return max((size for size in sizes if isinstance(size, int)), default=0)

    @property
    def growing(self) -> list[InputRecord]:
        """The caches that grow with each token; those of a file have further axes behind that of its windows."""
        return [cache for cache in self.caches if self.media is None or len(cache.axes) == _OF_TOKENS]

    def check_limit(self, tokens: int) -> None:
        """Raise RequestError if the base never writes this number of new tokens: prompt and text share its length."""
        if self.longest is not None and tokens > self.longest:
            raise RequestError(
                "more new tokens than the base takes, prompt included",
                where=argument("max_new_tokens"),
                found=f"{tokens:,}",
                expected=f"at most {self.longest:,}",
            )

    def length(self, prompt: Sequence[int], tokens: Sequence[int]) -> int:
        """Return how many tokens precede the next one: the prompt, or the one that begins a text, and the text."""
        return (len(prompt) if self.source is None else 1) + len(tokens)

    def check_prompt(self, prompt: Sequence[int], where: str) -> None:
        """Raise RequestError if a prompt has no token, or more than the base takes."""
        most = self.longest_prompt
        if not len(prompt) or (most is not None and len(prompt) > most):
            expected = "at least 1" if most is None else f"1 to {most}"
            raise RequestError("has too few or too many tokens", where=where, found=len(prompt), expected=expected)


def _roles(
    manifest: Manifest, reading: set[InputRecord | None]
) -> tuple[InputRecord, InputRecord | None, OutputRecord]:
    """Return the input of the new tokens, the mask over past and new ones, if there is one, and the logits."""
    by_role: dict[str, list[InputRecord]] = {}
    for record in manifest.inputs:
        if record not in reading:
            by_role.setdefault(record.role, []).append(record)
    ids, masks = by_role.get("ids", []), by_role.get("mask", [])
    following = {record.next for record in by_role.get("cache", ())}
    results = [output for output in manifest.base_outputs if output.name not in following and len(output.axes) == 3]
    known = len(ids) == len(results) == 1 and len(masks) <= 1 and following and not by_role.get("values")
    if not known or results[0].axes[1] != ids[0].axes[1]:
        raise RequestError(
            "the bundle does not generate text",
            found=f"inputs {', '.join(record.name for record in manifest.inputs)}",
            expected="token ids, a cache, and logits for each new token",
            fix="capture a language model without " + argument("bare", True) + ", and build again",
        )
    return ids[0], masks[0] if masks else None, results[0]


def _source(manifest: Manifest) -> InputRecord | None:
    """Return the input of an encoder's tokens, which may be empty in later calls; `None` for a decoder."""
    ids = [record for record in manifest.inputs if record.role == "ids" and len(record.axes) == 2]
    return next((record for record in ids if 0 in axis_lengths(record.axes[1], manifest.lengths)), None)


def _media(manifest: Manifest) -> InputRecord | None:
    """Return the input of an encoder's windows, which may be empty in later calls; `None` without one."""
    values = [record for record in manifest.inputs if record.role == "values" and len(record.axes) > 2]
    return next((record for record in values if 0 in axis_lengths(record.axes[1], manifest.lengths)), None)


def _mask_of(source: InputRecord, manifest: Manifest) -> InputRecord | None:
    masks = [record for record in manifest.inputs if record.role == "mask"]
    return next((record for record in masks if source.axes[1] in names(record.axes[1])), None)


def _past_axis(record: InputRecord, new: object) -> int:
    """Return the axis of a cache along which it grows."""
    return next(at for at, axis in enumerate(record.axes) if at and len(names(axis)) == 1 and axis != new)
