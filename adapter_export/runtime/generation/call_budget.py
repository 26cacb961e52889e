"""Cost of rows before they are computed, and budgets that bound calls and caches."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from adapter_export.runtime.generation.decoder_inputs import DecoderInputs

if TYPE_CHECKING:
    from adapter_export.runtime.generation.decoding_batch import WrittenRow

_LOGITS = 2**25
"""Maximum logits of a call: 128 MiB of float32, which vocabularies of over 65,536 tokens reach with fewer tokens."""

_PART = 128
"""New tokens of a call with a part of a long prompt. Larger parts take 2% less time, and other rows wait for each."""

_PART_BESIDE = 32
"""The same beside short prompts, which wait for as long as they take themselves; the long one takes a third longer."""

_CACHE = 2**30
"""Bytes of keys and values of all rows that are written at a time. The call that extends them copies them."""

_MOST_TOKENS = 2**16
"""Maximum default of `running`, for models whose caches are small."""


@dataclass(frozen=True)
class CallBudget:
    """Limits of a call that computes prompts, and of the rows that are written at a time.

    Attributes:
        tokens: new tokens of a call, padding included.
        cells: attention logits of a call per head: rows × new tokens × all tokens.
        least: new tokens of a chunk that are computed even if they exceed `cells`, after a long past.
        running: tokens of the caches of all rows that are written at a time.
        part: new tokens of a call with a part of a long prompt.
        states: states of the file of each row, which count as tokens.
    """

    tokens: int = 512
    cells: int = 2**18
    least: int = 32
    running: int = _MOST_TOKENS
    part: int = _PART
    states: int = 0

    @classmethod
    def of(cls, inputs: DecoderInputs) -> CallBudget:
        """Return the default budget of a decoder, by the width of its logits and its caches."""
        words, budget = inputs.logits.axes[2], cls()
        tokens = budget.tokens
        if isinstance(words, int):
            tokens = max(budget.least, min(tokens, _LOGITS // words))
        of_token = sum(
            math.prod(axis for axis in record.axes[1:] if isinstance(axis, int)) * np.dtype(record.dtype).itemsize
            for record in inputs.growing
        )
        running = min(_MOST_TOKENS, _CACHE // max(1, of_token))
        running = max(running, inputs.states + (inputs.longest or 0), inputs.longest_prompt or 0)
        return replace(budget, tokens=tokens, running=running, states=inputs.states)

    @property
    def beside(self) -> CallBudget:
        """The budget of parts of long prompts beside short ones."""
        return replace(self, part=min(self.part, _PART_BESIDE))

    def chunk(self, past: int) -> int:
        """Return the maximum new tokens of a call with a single row, after `past` tokens.

        Solves c × (past + c) ≤ cells for c.
        """
        fits = int((math.sqrt(past * past + 4 * self.cells) - past) / 2)
        return max(self.least, min(self.tokens, self.part, fits))

    def fits(self, rows: int, width: int) -> bool:
        """Return whether new rows, padded to one width, fit one call; a long prompt fits no call with others."""
        width += self.states
        return width <= self.part and rows * width <= self.tokens and rows * width * width <= self.cells

    def calls(self, rows: Sequence[WrittenRow]) -> Iterator[list[WrittenRow]]:
        """Yield the rows of each call that computes prompts; long prompts have calls of their own."""
        call: list[WrittenRow] = []
        for row in sorted(rows, key=lambda row: len(row.prompt)):
            if call and not self.fits(len(call) + 1, len(row.prompt)):
                yield call
                call = []
            call.append(row)
        if call:
            yield call


def cost_of(row: WrittenRow, inputs: DecoderInputs) -> int:
    """Return the most tokens that the caches of a row contain: those of its prompt, and all that it may write."""
    written = row.decoding.max_new_tokens
    if inputs.source is not None:
        return len(row.prompt) + (written if inputs.longest is None else min(written, inputs.longest))
    total = len(row.prompt) + written
    return inputs.states + (total if inputs.longest is None else min(total, inputs.longest))


def parts_of(rows: Sequence[WrittenRow], inputs: DecoderInputs, most: int) -> Iterator[list[WrittenRow]]:
    """Yield rows in parts whose caches have at most `most` tokens, padding included; a larger row is its own part."""
    part: list[WrittenRow] = []
    for row in sorted(rows, key=lambda row: cost_of(row, inputs)):
        if part and (len(part) + 1) * cost_of(row, inputs) > most:
            yield part
            part = []
        part.append(row)
    if part:
        yield part
