"""A reporter that counts: the bar of a call must grow to its end, and no further."""

from __future__ import annotations

from itertools import pairwise

from adapter_export.reporting import Reporter


class Counted(Reporter):
    """Records the progress after each step."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, int | None]] = []

    def step(self, label: str, done: int = 0, total: int | None = None) -> None:
        self.seen.append((done, total))

    @property
    def ended(self) -> bool:
        """True if the steps began at 0, grew one by one or in leaps, and ended where the work ends."""
        done = [one for one, _ in self.seen]
        grew = all(before < after for before, after in pairwise(done))
        return grew and done[0] == 0 and {total for _, total in self.seen} == {done[-1]}
