"""Show the formula of a kind."""

from adapter_export.commands.command import Command, Screen
from adapter_export.graph.kinds import KINDS, kind_named


def formula(kind: str) -> str:
    """Show the formula of KIND.

    Raises:
        UsageError: the kind is unknown.
    """
    return kind_named(kind).formula


def _show(text: str, screen: Screen) -> None:
    screen.line(text)


def _document(text: str, _: Screen) -> dict[str, object]:
    return {"formula": text, "kinds": len(KINDS)}


COMMAND = Command(formula, _show, document=_document, examples=("adapter-export formula deep",))
