"""Settings for writing a text: the tokens that begin and end it, and those that may not be chosen."""

from __future__ import annotations

from dataclasses import dataclass

from adapter_export.format.records import Count


@dataclass(frozen=True)
class GenerationRecord:
    """Settings of a model that writes text.

    Attributes:
        end: the tokens that end a text; the first is the one that is learnt.
        padding: the token that fills up rows that have ended. Null if there is none.
        start: the token that the decoder of an encoder–decoder reads first. Null for a decoder, which reads a prompt.
        first: the token that is written first in any case, such as that of a language. Null if the model chooses it.
        suppressed: tokens that are never chosen.
    """

    end: tuple[Count, ...] = ()
    padding: Count | None = None
    start: Count | None = None
    first: Count | None = None
    suppressed: tuple[Count, ...] = ()
