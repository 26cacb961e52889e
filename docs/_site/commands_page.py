"""`reference/commands`: every command with its arguments, options and examples, from the command line's own table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import click
from api_pages import public_names
from page_links import linked

from adapter_export.cli.group import Entry, LazyGroup
from adapter_export.cli.help_page import HelpPage
from adapter_export.cli.main import COMMANDS


def pages() -> Mapping[str, str]:
    """Return the text of the page by its path."""
    return {"reference/commands.md": "\n".join(_lines())}


def _lines() -> Iterator[str]:
    yield "# Commands"
    yield "\n```sh\nadapter-export --help\n```\n"
    yield "[The command line](command-line.md) has what all commands share: `--json`, `--config`, exit codes.\n"
    for section in dict.fromkeys(entry.section for entry in COMMANDS.values()):
        yield f"## {section}\n"
        for name, entry in COMMANDS.items():
            if entry.section == section:
                yield from _command(f"adapter-export {name}", entry)


def _command(path: str, entry: Entry) -> Iterator[str]:
    command = entry.make()
    context = click.Context(command, info_name=path)
    yield f"### {path.removeprefix('adapter-export ')}\n"
    yield f"    {' '.join([path, *command.collect_usage_pieces(context)])}\n"
    yield linked(f"{command.help}\n".replace("\b\n", ""), 1)
    yield from _in_python(path)
    sections = command.sections if isinstance(command, HelpPage) else {}
    sectioned = {param.name for params in sections.values() for param in params}
    plain = [param for param in command.get_params(context) if param.name not in sectioned]
    yield from _options(context, "", plain)
    for title, params in sections.items():
        yield from _options(context, title.capitalize(), params)
    yield f"{command.epilog}\n".replace("\b\nExamples:\n", "**Examples**\n\n").replace("\n  ", "\n    ")
    if isinstance(command, LazyGroup):
        for name, inner in command.table.items():
            yield from _command(f"{path} {name}", inner)


def _in_python(path: str) -> Iterator[str]:
    """Yield a link to the function of a command; a few commands, such as `run`, are methods."""
    public = f"adapter_export.{'_'.join(path.split()[1:])}"
    for section, names in public_names().items():
        if public in names:
            yield f"In Python: [`{public}`](api/{section}.md#{public}).\n"


def _options(context: click.Context, title: str, params: list[click.Parameter]) -> Iterator[str]:
    records = [param.get_help_record(context) for param in params if isinstance(param, click.Option)]
    if not records:
        return
    if title:
        yield f"**{title}**\n"
    yield "| Option | Description |\n|---|---|"
    for flags, text in filter(None, records):
        yield f"| `{_cell(flags)}` | {_cell(text)} |"
    yield ""


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
