"""Options for writing texts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from adapter_export.errors import UsageError, argument
from adapter_export.option import Option


@dataclass(frozen=True)
class Decoding:
    """Options for writing texts.

    Attributes:
        max_new_tokens: the most tokens that are written behind a prompt.
        temperature: logits are divided by it before a token is drawn; 0 takes the most likely token.
        top_k: the number of most likely tokens to draw from.
        top_p: a token is drawn from the fewest tokens that together have this probability (Holtzman et al. 2020, §3.1).
        seed: of the random numbers, which are those of a row whatever rows are beside it.
        stop: texts behind which nothing is written; they are left out themselves.
    """

    max_new_tokens: Annotated[int, Option("Maximum tokens to write behind a prompt.", "N", least=1)] = 64
    temperature: Annotated[float, Option("Sampling temperature; 0 takes the most likely token.", "T")] = 0.0
    top_k: Annotated[int | None, Option("Sample from the N most likely tokens.", "N", least=1)] = None
    top_p: Annotated[float | None, Option("Sample from the fewest tokens that have this probability.", "P")] = None
    seed: Annotated[int, Option("Random seed of the sampling.", least=0)] = 0
    stop: Annotated[Sequence[str], Option("End a text before this string. Repeatable.", "TEXT")] = ()

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise UsageError("nothing would be written", found=self.max_new_tokens, expected="at least 1 token")
        if not 0 <= self.temperature < math.inf:
            raise UsageError("is no temperature", found=self.temperature, expected="0 or more")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise UsageError("is no probability to draw from", found=self.top_p, expected="more than 0, at most 1")
        given = [argument(name) for name in ("top_k", "top_p") if getattr(self, name) is not None]
        if given and not self.temperature:
            raise UsageError(
                "only a text that is drawn has such options",
                found=" and ".join(given),
                fix=f"give {argument('temperature', 1.0)} as well",
            )
        if isinstance(self.stop, str) or "" in self.stop:
            raise UsageError("`stop` is a list of texts", found=repr(self.stop))
