"""`adapter-export`: the group of all commands."""

from __future__ import annotations

from collections.abc import Mapping

import click

from adapter_export.cli.discovery import found_commands
from adapter_export.cli.group import Entry, LazyGroup
from adapter_export.version import __version__

COMMANDS: Mapping[str, Entry] = found_commands()


@click.group(
    cls=LazyGroup,
    table=COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="\b\nFrom a model to a service:\n"
    "  adapter-export capture HF_FOLDER -o model.pt\n"
    "  adapter-export train model.pt --data train.tsv --text text --label label -o a\n"
    "  adapter-export build model.pt --adapters a -o bundle\n"
    "  adapter-export check bundle --against model.pt\n"
    "  adapter-export run bundle --adapter a --text 'How far is the moon?'\n"
    "\n\b\nExit codes: 0 done, 1 a comparison failed, 2 wrong call, 3 bad input, 4 nothing was compared,\n"
    "5 a bug, 6 a gate on training rows, 7 a hub is unreachable, 8 it has no such repository or revision,\n"
    "9 it denies access, 130 interrupted. With `--json` every command writes one document to stdout, errors too.",
)
@click.version_option(__version__, prog_name="adapter-export", message="%(prog)s %(version)s")
@click.option("--debug", is_flag=True, help="Show tracebacks and the warnings of libraries.")
def main(debug: bool) -> None:
    """Export a frozen model and its adapters to one ONNX graph with swappable adapter weights."""
