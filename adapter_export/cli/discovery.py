"""Discovery of commands: the core's by scanning `adapter_export.commands`, those of plug-ins by their records."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Iterator, Mapping
from functools import partial
from itertools import chain
from types import ModuleType

import click

from adapter_export import commands
from adapter_export.cli.click_command import make_command
from adapter_export.cli.group import Entry, LazyGroup
from adapter_export.cli.help_page import examples
from adapter_export.plugin import first_of_each, imported_modules, part_modules, plugins

_ORDER: Mapping[str, tuple[str, ...]] = {
    "models": ("capture", "sites"),
    "training": ("plan", "train", "sweep", "lint", "drop", "distil"),
    "adapters": ("pack", "import", "doctor", "compose", "merge", "export"),
    "bundles": (
        "build",
        "add",
        "remove",
        "check",
        "verify",
        "sign",
        "evaluate",
        "compare",
        "run",
        "generate",
        "run-many",
        "inspect",
    ),
    "serving": ("serve", "bench", "ship", "push", "pull"),
}
"""Sections of the help page, and the order of commands in each; others follow."""


def found_commands() -> Mapping[str, Entry]:
    """Return all commands by name, in the order of the help page."""
    modules = first_of_each("command", ((_name(module), (section, module)) for section, module in _modules()))
    sections = list(dict.fromkeys([*_ORDER, *(section for section, _ in modules.values())]))
    order = [name for names in _ORDER.values() for name in names]

    def place(name: str) -> tuple[int, int]:
        return sections.index(modules[name][0]), order.index(name) if name in order else len(order)

    return {name: _entry(modules[name][1], modules[name][0].capitalize()) for name in sorted(modules, key=place)}


def _modules() -> Iterator[tuple[str, ModuleType]]:
    """Yield the section and the module of each command, the core's first."""
    yield from _core_modules()
    yield from _plugin_modules()


def _core_modules() -> Iterator[tuple[str, ModuleType]]:
    """Yield each module of a command in the core, and its section, which is its package."""
    for package in _public_modules(commands):
        if hasattr(package, "__path__"):
            yield from ((_name(package), module) for module in _public_modules(package))


def _plugin_modules() -> Iterator[tuple[str, ModuleType]]:
    for plugin in plugins().values():
        for section, modules in plugin.commands.items():
            yield from ((section, module) for module in imported_modules(plugin, modules))


def _public_modules(package: ModuleType) -> Iterator[ModuleType]:
    """Import the modules of a package except helpers, whose names start with an underscore."""
    for module in pkgutil.iter_modules(package.__path__):
        if not module.name.startswith("_"):
            yield importlib.import_module(f"{package.__name__}.{module.name}")


def _entry(module: ModuleType, section: str) -> Entry:
    """Return the entry of a command's module; a package is a group of commands."""
    name = _name(module)
    make = partial(_group, module) if hasattr(module, "__path__") else partial(make_command, module.COMMAND, name)
    return Entry(str(module.__doc__).partition("\n")[0], make, section)


def _name(module: ModuleType) -> str:
    """Return a command's name by its module's, such as `import` for `import_`, and `run-many` for `run_many`."""
    return module.__name__.rpartition(".")[2].rstrip("_").replace("_", "-")


def _group(package: ModuleType) -> click.Command:
    text = inspect.cleandoc(str(package.__doc__))
    modules = chain(_public_modules(package), part_modules(package.COLLECTION))
    table = first_of_each("command", ((_name(module), _entry(module, "Commands")) for module in modules))
    return LazyGroup(_name(package), table=table, help=text, epilog=examples(*package.EXAMPLES))
