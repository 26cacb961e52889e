"""Options, output and rendering shared by commands that make an adapter."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from adapter_export.address import PathLike
from adapter_export.bases.adapters import save
from adapter_export.commands.command import Screen, next_line
from adapter_export.errors import UsageError
from adapter_export.option import Option
from adapter_export.safe_io.output import Output
from adapter_export.tables import number_of
from adapter_export.words import argument

if TYPE_CHECKING:
    from adapter_export.graph.adapter import Adapter

ADAPTER_FOLDER = Option("Adapter folder to write.", "PATH", "-o", required=True)
BASE = Option("The model that the adapter was trained on.", "MODEL", "--base")
NAME = Option("Name of the adapter. Default: the name of the output.")

BY_NUMBER = Option("Match layers by number if module names or architectures differ.")
WithoutHead = Annotated[bool, "Omit the prediction head."]
Labels = Annotated[tuple[str, ...] | None, "Class names of the head, in logit order."]


class AdapterOutput:
    """Output folder of a new adapter, if any, and the adapter's name.

    Args:
        output: the folder, checked at once; `None` to save nothing.
        force: replace an existing folder.
        sources: inputs of the call.
    """

    def __init__(self, output: PathLike | None, force: bool, sources: object) -> None:
        self._output = None if output is None else Output(Path(output), force)
        if self._output is not None:
            self._output.ensure_writable(folder=True, sources=sources)

    def name(self, requested: str | None) -> str | None:
        """Return the given name, or the folder's name."""
        return requested or (None if self._output is None else self._output.path.resolve().name)

    def required_name(self, requested: str | None) -> str:
        """Return `name`; raise `UsageError` if it is missing."""
        name = self.name(requested)
        if name is None:
            raise UsageError("the adapter has no name", fix="give " + argument("name") + " or " + argument("output"))
        return name

    def save(self, adapter: Adapter) -> Adapter:
        """Save an adapter and return it. Raises the errors of `save`."""
        if self._output is not None:
            save(adapter, self._output.path, force=self._output.force)
        return adapter


def show_adapter(adapter: Adapter, screen: Screen) -> None:
    """Render the written adapter."""
    output, head = screen.given["output"], adapter.head
    with_head = "" if head is None else ", a head" if head.task is None else f", a head for `{head.task.type}`"
    places = f"{number_of(len(adapter.placements), 'site')}{with_head}"
    parameters = number_of(adapter.cost().parameters, "parameter")
    screen.report(f"wrote {output}: `{adapter.name}`, {adapter.kind}, {places}, {parameters}.")
    model = screen.given.get("base")
    build = ("inspect", output) if model is None else ("build", model, "--adapters", output, "-o", "bundle")
    screen.report(f"Next: {next_line(*build)}")


def adapter_document(adapter: Adapter, screen: Screen) -> Mapping[str, object]:
    """Return the written adapter as JSON data, with the call's notes."""
    head = adapter.head
    return {
        "adapter": str(screen.given["output"]),
        "name": adapter.name,
        "kind": adapter.kind,
        "parameters": adapter.cost().parameters,
        "sites": list(adapter.placements),
        "task": None if head is None or head.task is None else head.task.document(),
        "notes": list(screen.notes),
    }
