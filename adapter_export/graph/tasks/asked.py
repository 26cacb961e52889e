"""Rows of calls and the adapters that they name; importing this module loads no runtime."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from adapter_export.errors import UsageError
from adapter_export.text import Pair, SidedText, TextSide
from adapter_export.words import argument, quoted

BASE = "base"
"""Names the base in calls, where no adapter has this name."""


@dataclass(frozen=True)
class Row:
    """A row to answer, with its adapter and options.

    Attributes:
        asked: a text, a text with its side of a search, a pair, the words of a text, a question with its choices (a
            list of pairs), an image or an audio file; or an array `[1, …]` for each input of the base.
        adapter: the adapter. Default: the base head, or the base.
        strength: how much of the adapter's updates is added, as in `Session.run`.
        weights: a number for each member of an adapter that is a weighted fusion, in place of its own.
        context: of arrays for a `span`, which tokens may be the answer, bool `[tokens]`.
        where: names the row in messages.
    """

    asked: Any
    adapter: str | None = None
    strength: float = 1.0
    weights: Mapping[str, float] | None = None
    context: npt.NDArray[np.bool_] | None = None
    where: str = ""

    @property
    def is_arrays(self) -> bool:
        """True if the row is given as arrays."""
        return isinstance(self.asked, Mapping)

    @property
    def texts(self) -> dict[str, Any]:
        """The texts of the row as JSON: a text, a pair, or a question with choices; for arrays its name."""
        if self.is_arrays:
            return {"text": self.where}
        if isinstance(self.asked, Pair):
            return {"text": self.asked.first, "pair": self.asked.second}
        if isinstance(self.asked, list):
            return {"text": self.asked[0].first, "choices": [pair.second for pair in self.asked]}
        return {"text": self.asked.text if isinstance(self.asked, SidedText) else str(self.asked)}

    def on_side(self, side: TextSide | None) -> Row:
        """Return the row with the side of its text; `None` leaves it as it is."""
        return self if side is None else replace(self, asked=SidedText(self.asked, side))


def named_adapter(adapter: str | None, answering: Mapping[str, bool], base_head: str | None) -> str | None:
    """Return the adapter that a call names; `None` is the base, answered by its head if it has one.

    Args:
        adapter: the name, or `base`; `None` without a name, which is refused if adapters answer.
        answering: adapters by name, true for those with a task.
        base_head: the name of the base head.

    Raises:
        UsageError: no adapter is named.
    """
    if adapter == BASE and BASE not in answering:
        return None
    names = [name for name, answers in answering.items() if answers and name != base_head]
    if adapter is None and names:
        raise UsageError(
            "no adapter is named",
            found=f"adapters that answer: {quoted(names)}",
            expected=f"one of them, or `{BASE}` for the base without them",
            fix="name one: " + argument("adapter", words="NAME"),
        )
    return adapter
