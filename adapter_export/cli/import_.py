"""`adapter-export import`: adapters that other libraries trained, one command for each library."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from adapter_export.cli.main import Entry, LazyGroup
from adapter_export.cli.options import (
    PATH,
    check_free,
    examples,
    force_option,
    json_option,
    output_option,
    site_map_option,
    trust_pickle_option,
)
from adapter_export.graph.ops import ACTIVATIONS

if TYPE_CHECKING:
    import numpy as np

    from adapter_export.cli.sources import Source
    from adapter_export.importers.peft.head import HeadChoice


# `adapter-export import peft`: a folder that PEFT wrote becomes an adapter.


@click.command(
    epilog=examples(
        "adapter-export import peft lora_folder --base model.pt -o a",
        "adapter-export import peft lora_folder --base HF_FOLDER --labels negative,positive -o sentiment",
    )
)
@click.argument("folder", type=PATH)
@click.option("--base", type=PATH, required=True, metavar="MODEL", help="The model that the adapter was trained on.")
@click.option("--name", help="What users will call it; in a folder of several, also which one. The output's name.")
@click.option("--labels", metavar="A,B,…", help="The names of the head's classes, in the order of the logits.")
@click.option(
    "--pooling",
    type=click.Choice(("first", "mean", "tokens")),
    help="What the head reads, where that is not known: the first token, the mean, or each token.",
)
@click.option(
    "--activation", type=click.Choice(ACTIVATIONS), help="The function behind the head's dense layer, likewise."
)
@click.option(
    "--by-number", is_flag=True, help="Match layers by their numbers where the base's modules have been renamed."
)
@click.option("--without-head", is_flag=True, help="Leave its prediction head out.")
@output_option("The adapter folder")
@force_option
@site_map_option
@trust_pickle_option
@json_option
def import_peft(
    folder: Path,
    base: Path,
    name: str | None,
    labels: str | None,
    pooling: str | None,
    activation: str | None,
    by_number: bool,
    without_head: bool,
    output: Path,
    force: bool,
    site_map: Path | None,
    trust_pickle: bool,
    as_json: bool,
) -> None:
    """Import a LoRA or an IA3 that PEFT saved in FOLDER.

    FOLDER has `adapter_config.json` and `adapter_model.safetensors` or `adapter_model.bin`, of which only tensors are
    read. PEFT need not be installed. What cannot be expressed is refused by name.
    """
    from adapter_export.cli.places import report_adapter, with_site_map
    from adapter_export.cli.sources import open_source
    from adapter_export.format.adapter_files import write_adapter
    from adapter_export.importers.peft.importer import import_peft as make

    check_free(output, force=force)
    source = open_source(base, trust_pickle=trust_pickle, site_map=site_map)
    imported = make(
        folder,
        source.sites(),
        base=source.fingerprint,
        name=name or output.resolve().name,
        base_tensor=lambda key: _base_tensor(source, key),
        member=name,
        head=_head_choice(base, labels, pooling, activation, without_head),
        by_number=by_number,
    )
    write_adapter(with_site_map(imported.adapter, source), output, force=force)
    report_adapter(imported.adapter, imported.notes, output, as_json)


def _base_tensor(source: Source, key: str) -> np.ndarray | None:
    """A tensor of the base, by its name there."""
    from adapter_export.cli.sources import TorchSource

    if isinstance(source, TorchSource):
        tensor = source.base.program.state_dict.get(key)
        return None if tensor is None else tensor.detach().float().numpy()
    return source.base.tensor(key)


def _head_choice(
    base: Path, labels: str | None, pooling: str | None, activation: str | None, without_head: bool
) -> HeadChoice:
    from adapter_export.importers.peft.head import HeadChoice, known_labels

    return HeadChoice(
        pooling,
        activation,
        None if labels is None else tuple(label.strip() for label in labels.split(",")),
        known_labels(base / "config.json") if base.is_dir() else (),
        leave_out=without_head,
    )


# `adapter-export import adapterhub`: a folder that AdapterHub's library wrote becomes an adapter.


@click.command(
    epilog=examples(
        "adapter-export import adapterhub saved/sentiment --base model.pt -o sentiment",
        "adapter-export import adapterhub saved --name sentiment --base model.onnx -o sentiment",
        "adapter-export import adapterhub setup --base model.pt -o stacked",
    )
)
@click.argument("folder", type=PATH)
@click.option("--base", type=PATH, required=True, metavar="MODEL", help="The model that the adapter was trained on.")
@click.option("--name", help="What users will call it; in a folder of several, also which one. The output's name.")
@click.option("--without-head", is_flag=True, help="Leave its prediction head out.")
@output_option("The adapter folder")
@force_option
@site_map_option
@trust_pickle_option
@json_option
def adapterhub(
    folder: Path,
    base: Path,
    name: str | None,
    without_head: bool,
    output: Path,
    force: bool,
    site_map: Path | None,
    trust_pickle: bool,
    as_json: bool,
) -> None:
    """Import an adapter that AdapterHub's library saved in FOLDER.

    FOLDER has `adapter_config.json` and `pytorch_adapter.bin` or `adapter.safetensors`, of which only tensors are read.
    Bottlenecks with every option, LoRA, IA3, invertible adapters and prediction heads are imported; neither the library
    nor torch's unpickler is needed. What cannot be expressed is refused by name.

    A folder that `save_adapter_setup` wrote becomes one adapter with its members inside, a `Stack`, `Average` or `Fuse`
    as nested as the library allows; `--name` with the name of a member imports that one alone.
    """
    from adapter_export.cli.places import report_adapter, with_site_map
    from adapter_export.cli.sources import open_source
    from adapter_export.format.adapter_files import write_adapter
    from adapter_export.importers.adapterhub.importing import choose, import_folder

    check_free(output, force=force)
    chosen = choose(folder, name)
    source = open_source(base, trust_pickle=trust_pickle, site_map=site_map)
    imported = import_folder(
        chosen,
        source.sites(),
        name=name or output.resolve().name,
        base=source.fingerprint,
        with_head=not without_head,
    )
    write_adapter(with_site_map(imported.adapter, source), output, force=force)
    report_adapter(imported.adapter, imported.notes, output, as_json)


LIBRARIES = {
    "adapterhub": Entry(
        "adapter_export.cli.import_:adapterhub", "An adapter, with its head, that AdapterHub's library saved."
    ),
    "peft": Entry("adapter_export.cli.import_:import_peft", "A LoRA or an IA3 that PEFT saved."),
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
