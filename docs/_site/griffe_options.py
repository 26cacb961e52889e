"""An extension of griffe: parameters that are declared as options of the command line, as plain documented parameters.

    base: Annotated[PathLike, Option("The model.", "MODEL")]

becomes `base: PathLike`, with the help of the option as its description. `**options: Annotated[Any, OptionsOf(…)]`
stays in the signature; its options become a section of their own.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import griffe
from page_links import linked

from adapter_export.cli.options import hint_of, parameters

_LITERAL_BLOCK = re.compile(r"^(.*?):?:\n(?=\n    )", re.MULTILINE)
_MODULE = re.compile(r"\b(?:\w+\.)+(?=\w)")


class DeclaredOptions(griffe.Extension):
    """Rewrites functions of the package as they are loaded."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Make links of the names of pages, and code blocks of those of reStructuredText."""
        if obj.docstring is not None:
            text = _LITERAL_BLOCK.sub(lambda block: f"{block[1]}:\n" if block[1] else "", obj.docstring.value)
            obj.docstring.value = linked(text, 2)

    def on_function(self, *, func: griffe.Function, **_: Any) -> None:
        """Describe the parameters that are annotated with options."""
        annotated = [one for one in func.parameters if _plain(one.annotation) is not one.annotation]
        if not annotated or func.module.path.split(".")[1] not in ("api", "commands"):
            return
        for one in annotated:
            one.annotation = _plain(one.annotation)
        call = getattr(importlib.import_module(func.module.path), func.name, None)
        if func.docstring is None or call is None:
            return
        helps = {str(one.name): getattr(one, "help", None) for one in parameters(call)}
        text = func.docstring.value
        known = set(re.findall(r"^    (\w+): ", text.partition("\nArgs:\n")[2], re.MULTILINE))
        missing = [one.name for one in annotated if one.name not in known and helps.get(one.name)]
        if missing:
            own = "".join(f"    {name}: {helps[name]}\n" for name in missing)
            head, args, rest = text.partition("\nArgs:\n")
            text = head + (args or "\n\nArgs:\n") + own + rest
        packed = "\n".join(_packed(call, helps))
        func.docstring.value = f"{text}\n\nOther Parameters:\n{packed}\n" if packed else text


def _plain(annotation: Any) -> Any:
    """Return `X` of an annotation `Annotated[X, …]`."""
    if isinstance(annotation, griffe.ExprSubscript) and str(annotation.left) == "Annotated":
        inner = annotation.slice
        return inner.elements[0] if isinstance(inner, griffe.ExprTuple) else inner
    return annotation


def _packed(call: Any, helps: dict[str, str | None]) -> Iterator[str]:
    """Yield a line for each option that a call takes by name."""
    for one in inspect.signature(call).parameters.values():
        if one.kind is one.VAR_KEYWORD:
            for name, kind, default in get_args(hint_of(call, one.name))[1].declared():
                shown = "" if default is None or default == () else f" Default: `{default!r}`."
                yield f"    {name} ({_type(kind)}): {helps.get(name) or ''}{shown}"


def _type(hint: object) -> str:
    """Return a type as it is written, without modules and annotations."""
    if get_origin(hint) is Annotated:
        return _type(get_args(hint)[0])
    if get_origin(hint) in (Union, UnionType):
        return " | ".join(map(_type, get_args(hint)))
    return "None" if hint is NoneType else _MODULE.sub("", inspect.formatannotation(hint))
