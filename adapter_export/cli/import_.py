"""`adapter-export import`: adapters that other libraries trained, one command for each library."""

from __future__ import annotations

import click

from adapter_export.cli.main import Entry, LazyGroup
from adapter_export.cli.options import examples

LIBRARIES = {
    "adapterhub": Entry(
        "adapter_export.cli.import_adapterhub:adapterhub", "An adapter, with its head, that AdapterHub's library saved."
    ),
    "peft": Entry("adapter_export.cli.import_peft:import_peft", "A LoRA or an IA3 that PEFT saved."),
}


@click.group(
    name="import",
    cls=LazyGroup,
    table=LIBRARIES,
    epilog=examples(
        "adapter-export import adapterhub saved/sentiment --base model.pt -o sentiment",
        "adapter-export import peft saved/lora --base model.pt -o lora",
        "adapter-export import adapterhub saved/sentiment --base model.pt -o sentiment --json",
    ),
)
def import_() -> None:
    """Make an adapter of one that another library trained and saved.

    The base is needed for its sites alone, and the other library not at all. What cannot be expressed is refused by
    name, and known defects of the formats are named. `docs/importing.md` lists both.
    """
