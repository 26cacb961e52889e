"""Text generation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from adapter_export.address import PathLike
from adapter_export.errors import UsageError
from adapter_export.option import Option
from adapter_export.words import argument, joined


@dataclass(frozen=True)
class Decoding:
    """Options of text generation.

    Attributes:
        max_new_tokens: maximum number of generated tokens.
        temperature: divisor of the logits before sampling; 0 is greedy.
        top_k: sample from this number of most likely tokens.
        top_p: sample from the smallest set of tokens with this total probability (nucleus sampling, Holtzman et al.
            2020, §3.1).
        seed: random seed; the numbers of a row do not depend on the other rows of a batch.
        stop: texts that end the generation; they are removed from the result.
        json_schema: a JSON schema that each text follows, or a file with one.
    """

    max_new_tokens: Annotated[int, Option("Maximum number of generated tokens.", "N", least=1)] = 64
    temperature: Annotated[float, Option("Sampling temperature; 0 is greedy.", "T")] = 0.0
    top_k: Annotated[int | None, Option("Sample from the N most likely tokens.", "N", least=1)] = None
    top_p: Annotated[float | None, Option("Sample from the fewest tokens with this probability.", "P")] = None
    seed: Annotated[int, Option("Random seed for sampling.", least=0)] = 0
    stop: Annotated[Sequence[str], Option("Stop before this string. Repeatable.", "TEXT")] = ()
    json_schema: Annotated[
        PathLike | Mapping[str, Any] | None, Option("Answer with JSON that follows the schema in this file.", "FILE")
    ] = None

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise UsageError("`max_new_tokens` must be at least 1", found=self.max_new_tokens)
        if not 0 <= self.temperature < math.inf:
            raise UsageError("`temperature` must be 0 or more", found=self.temperature)
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise UsageError("`top_p` must be more than 0 and at most 1", found=self.top_p)
        sampling = [argument(name) for name in ("top_k", "top_p") if getattr(self, name) is not None]
        if sampling and not self.temperature:
            raise UsageError(
                "sampling options need a temperature greater than 0",
                found=joined(sampling, " and "),
                fix="pass " + argument("temperature", 1.0) + " as well",
            )
        if isinstance(self.stop, str) or "" in self.stop:
            raise UsageError("`stop` must be a list of non-empty texts", found=repr(self.stop))
