"""Settings of text generation: first and last tokens, and suppressed tokens."""

from __future__ import annotations

from dataclasses import dataclass

from adapter_export.format.records import Count


@dataclass(frozen=True)
class GenerationRecord:
    """Settings of a text-generating model.

    Attributes:
        end: the tokens that end a text; training uses the first.
        padding: the token that pads finished rows; null if there is none.
        start: the first input token of the decoder of an encoder–decoder; null for a decoder, which reads a prompt.
        first: the forced token after a single token, such as a language token; null if the model chooses it.
        suppressed: tokens that are never generated.
        last: the forced last token of a text that reaches its length limit; null if the model chooses it.
    """

    end: tuple[Count, ...] = ()
    padding: Count | None = None
    start: Count | None = None
    first: Count | None = None
    suppressed: tuple[Count, ...] = ()
    last: Count | None = None
