"""The residual streams of a base by their names: one that has none, or an encoder and a decoder that attends to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from adapter_export.errors import NoSitesError
from adapter_export.sites.index import FlowIndex
from adapter_export.sites.roles import role_of
from adapter_export.sites.stream import Residual, residual_streams


@dataclass(frozen=True)
class Stream:
    """A residual stream.

    Attributes:
        prefix: what the names of its sites begin with; empty where a base has one stream.
        sums: its sums, in order.
    """

    prefix: str
    sums: tuple[Residual, ...]


def named_streams(index: FlowIndex) -> list[Stream]:
    """The streams of a base, the one that gives the result last; none if there is no residual sum.

    Raises:
        NoSitesError: there are several that are no encoder and decoder.
    """
    found = residual_streams(index)
    if len(found) < 2:
        return [Stream("", tuple(sums)) for sums in found]
    if len(found) == 2:
        for encoder, decoder in (found, found[::-1]):
            if _attends(index, decoder, encoder) and not index.ancestry.depends(encoder[-1].total, on=decoder[0].x):
                return [Stream("encoder.", tuple(encoder)), Stream("decoder.", tuple(decoder))]
    raise _several_streams([len(sums) for sums in found])


def _attends(index: FlowIndex, decoder: Sequence[Residual], encoder: Sequence[Residual]) -> bool:
    """Whether a sublayer of one stream takes keys and values from the end of the other."""
    reading = [sum_ for sum_ in decoder if index.ancestry.depends(sum_.h, on=encoder[-1].total)]
    return any(role_of(index, sum_.x, sum_.h) == "cross_attention" for sum_ in reading)


def _several_streams(lengths: list[int]) -> NoSitesError:
    return NoSitesError(
        "this base has several residual streams, and a site's name says nothing about which one it is in",
        found=f"{len(lengths)} streams, of {', '.join(map(str, lengths))} sublayers",
        expected="one stream, or an encoder and a decoder that attends to its end",
        fix="capture the part that the adapters are for, such as the encoder, as a base of its own",
    )
