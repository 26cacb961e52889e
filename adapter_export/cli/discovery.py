"""Discovery of commands by scanning `adapter_export.commands`."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from types import ModuleType

import click

from adapter_export import commands
from adapter_export.cli.click_command import made
from adapter_export.cli.group import Entry, LazyGroup
from adapter_export.cli.help_page import examples

_SECTIONS = ("models", "training", "adapters", "bundles", "serving")
"""Sections in help-page order; new ones follow."""


def found_commands() -> Mapping[str, Entry]:
    """Return all commands by name, in help-page order."""
    found = dict[str, Entry]()
    for section in _in_order(_modules(commands), _SECTIONS):
        if hasattr(section, "__path__"):
            for name, entry in _entries(section).items():
                found[name] = replace(entry, section=_name(section).capitalize())
    return found


def _entries(package: ModuleType) -> Mapping[str, Entry]:
    """Return the commands of a package; a nested package is a command group."""
    entries = dict[str, Entry]()
    for module in _in_order(_modules(package), getattr(package, "ORDER", ())):
        name = _name(module)
        summary = str(module.__doc__).partition("\n")[0]
        make = partial(_group, module) if hasattr(module, "__path__") else partial(made, module.COMMAND, name)
        entries[name] = Entry(summary, make)
    return entries


def _modules(package: ModuleType) -> Iterator[ModuleType]:
    """Import the modules of a package except helpers, whose names start with an underscore."""
    for found in pkgutil.iter_modules(package.__path__):
        if not found.name.startswith("_"):
            yield importlib.import_module(f"{package.__name__}.{found.name}")


def _name(module: ModuleType) -> str:
    """Return a command's name: its module's name, such as `import` for `import_`."""
    return module.__name__.rpartition(".")[2].rstrip("_")


def _in_order(modules: Iterator[ModuleType], order: Sequence[str]) -> list[ModuleType]:
    names = {_name(module): module for module in modules}
    return sorted(names.values(), key=lambda one: order.index(_name(one)) if _name(one) in order else len(order))


def _group(package: ModuleType) -> click.Command:
    text = inspect.cleandoc(str(package.__doc__))
    return LazyGroup(_name(package), table=_entries(package), help=text, epilog=examples(*package.EXAMPLES))
