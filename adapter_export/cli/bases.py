"""What commands that open a base, and those that make an adapter, have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import adapter_export as ae
from adapter_export.api.models.base import OpenOptions
from adapter_export.api.models.opening import recorded_base
from adapter_export.cli.output import Bar, emit_json, progress_bar, say, warn
from adapter_export.errors import Note
from adapter_export.reporting import Reporter

if TYPE_CHECKING:
    from adapter_export import Adapter


class Noted(Reporter):
    """Show steps as they begin, and keep notes in the words of the command line.

    Args:
        show: receives each step; by default steps are not shown.
    """

    def __init__(self, show: Callable[[str], None] | None = None) -> None:
        self.notes: list[str] = []
        self._show = show

    def step(self, label: str, done: int = 0, total: int | None = None) -> None:  # noqa: ARG002
        """Show the step."""
        if self._show is not None:
            self._show(label)

    def note(self, text: str) -> None:
        """Keep the note."""
        self.notes.append(Note(text).sentence("shell"))


def listed(text: str) -> list[str]:
    """Return the items of `a,b`; an empty one is refused by whoever reads it."""
    return [item.strip() for item in text.split(",")]


def opened(model: Path, site_map: Path | str | None, trust_pickle: bool, *, from_record: bool = False) -> ae.Base:
    """Open a base, or take what its record says, and say what was done to it."""
    if from_record:
        base = recorded_base(model, OpenOptions(site_map, trust_pickle))
    else:
        base = ae.open_base(model, site_map=site_map, trust_pickle=trust_pickle)
    for note in () if base.form == "archive" else base.notes:  # whoever captured it was told
        say(f"{model.name}: {note}")
    return base


def report_adapter(
    adapter: Adapter,
    notes: Sequence[str],
    output: Path,
    as_json: bool,
    facts: Mapping[str, Any] | None = None,
    told: Sequence[str] = (),
) -> None:
    """Say what was written, and warn of what was done on the way.

    The document says `facts` beside that, and the notes that were `told` before.
    """
    for note in notes:
        warn(f"{note}.")
    parameters, head = adapter.cost().parameters, adapter.head
    if as_json:
        document = {
            "adapter": str(output),
            "name": adapter.name,
            "kind": adapter.kind,
            "parameters": parameters,
            "sites": list(adapter.placements),
            "task": None if head is None or head.task is None else head.task.document(),
            "notes": [*told, *notes],
        }
        emit_json({**(facts or {}), **document})
        return
    with_head = "" if head is None else ", a head" if head.task is None else f", a head for `{head.task.type}`"
    places = f"{len(adapter.placements)} sites{with_head}"
    say(f"wrote {output}: `{adapter.name}`, {adapter.kind}, {places}, {parameters:,} parameters.")
    say(f"Next: adapter-export build MODEL --adapters {output} -o bundle")


@contextmanager
def stepping(description: str) -> Iterator[Callable[[int, int, str], None]]:
    """Show a bar that a call moves as it goes; it appears with the first step, when the number of steps is known."""
    with ExitStack() as stack:
        bars: list[Bar] = []
        reached = 0

        def step(done: int, total: int, note: str) -> None:
            nonlocal reached
            if not bars:
                bars.append(stack.enter_context(progress_bar(description, total)))
            bars[0].advance(done - reached, note)
            reached = done

        yield step
