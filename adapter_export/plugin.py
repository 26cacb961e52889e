"""Plug-ins: packages that add commands, public calls and parts to the core, which imports none of them.

The folders of `adapter_export.plugins` are plug-ins, and so is what installed packages name in the entry-point group
`adapter_export.plugins`. A record names modules instead of importing them, so that listing plug-ins takes no time.
"""

from __future__ import annotations

import importlib
import pkgutil
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import entry_points
from types import ModuleType
from typing import TypeVar

Entry = TypeVar("Entry")

_GROUP = "adapter_export.plugins"
"""Package of the plug-ins in this distribution, and entry-point group of those in others."""


@dataclass(frozen=True)
class Plugin:
    """The record of a plug-in: `PLUGIN` in its package, or the object that an entry point names.

    Attributes:
        name: its name.
        commands: modules that define a command as `COMMAND`, by section of the help page.
        calls: public calls and classes of `adapter_export`, by name, each with its module.
        parts: modules that add to a collection, by its name: `addresses` (schemes of addresses), `exporters` and
            `importers` (formats of other libraries), `flags` (of other commands), `kinds` (of adapters), `modalities`,
            `objectives` (losses of task types), `processors` (readers of files), `task_types`.
    """

    name: str
    commands: Mapping[str, Sequence[str]] = field(default_factory=dict)
    calls: Mapping[str, str] = field(default_factory=dict)
    parts: Mapping[str, Sequence[str]] = field(default_factory=dict)


class PluginWarning(UserWarning):
    """A plug-in, or an entry of one, is left out: it cannot be imported, or its name is taken."""


@cache
def plugins() -> Mapping[str, Plugin]:
    """Return all plug-ins by name: those of this distribution, then those of others, each in alphabetical order.

    A plug-in of another distribution that cannot be loaded, or has the name of another one, is left out with a
    `PluginWarning`.
    """
    by_name = {plugin.name: plugin for plugin in _shipped()}
    for entry in sorted(entry_points(group=_GROUP), key=lambda entry: entry.name):
        origin = f"plug-in `{entry.name}` of `{entry.dist.name if entry.dist else entry.value}`"
        try:
            plugin = entry.load()
        except (ImportError, AttributeError) as error:  # it, or what it needs, is missing; other errors are its bugs
            warnings.warn(f"{origin} cannot be loaded: {type(error).__name__}: {error}", PluginWarning, stacklevel=2)
            continue
        if not isinstance(plugin, Plugin):
            warnings.warn(
                f"{origin} is left out: it is a `{type(plugin).__name__}`, not a `Plugin`", PluginWarning, stacklevel=2
            )
        elif plugin.name in by_name:
            warnings.warn(f"{origin} is left out: the name `{plugin.name}` is taken", PluginWarning, stacklevel=2)
        else:
            by_name[plugin.name] = plugin
    return by_name


def _shipped() -> Iterator[Plugin]:
    try:
        package = importlib.import_module(_GROUP)
    except ModuleNotFoundError:  # the core works without any
        return
    for module in pkgutil.iter_modules(package.__path__):
        yield importlib.import_module(f"{_GROUP}.{module.name}").PLUGIN


def first_of_each(what: str, entries: Iterable[tuple[str, Entry]]) -> dict[str, Entry]:
    """Return entries by name; a later one whose name is taken is left out with a `PluginWarning`.

    The core puts its own entries first, so that no plug-in replaces a command, a kind or a format in silence.

    Args:
        what: the entries in a message, such as `kind`.
        entries: names and entries.
    """
    by_name: dict[str, Entry] = {}
    for name, entry in entries:
        if by_name.setdefault(name, entry) is not entry:
            warnings.warn(
                f"the {what} `{name}` of a plug-in is left out: the name is taken", PluginWarning, stacklevel=3
            )
    return by_name


def part_modules(collection: str) -> Iterator[ModuleType]:
    """Yield the modules that plug-ins add to a collection of the core."""
    for plugin in plugins().values():
        yield from imported_modules(plugin, plugin.parts.get(collection, ()))


def imported_modules(plugin: Plugin, names: Iterable[str]) -> Iterator[ModuleType]:
    """Import and yield modules that a plug-in names; one that cannot be imported is a `PluginWarning`."""
    for name in names:
        try:
            yield importlib.import_module(name)
        except ImportError as error:
            warnings.warn(f"`{name}` of the plug-in `{plugin.name}` is left out: {error}", PluginWarning, stacklevel=2)


def public_calls() -> Mapping[str, str]:
    """Return the module of each public call of a plug-in, by the call's name."""
    calls = ((name, module) for plugin in plugins().values() for name, module in plugin.calls.items())
    return first_of_each("call", calls)
