"""`adapter-export import peft`: a folder that PEFT wrote becomes an adapter."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

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
    from adapter_export.interop.peft.head import HeadChoice


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
    from adapter_export.cli.imported import report_adapter
    from adapter_export.cli.places import with_site_map
    from adapter_export.cli.sources import open_source
    from adapter_export.format.adapter_files import write_adapter
    from adapter_export.interop.peft.importer import import_peft as make

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
    from adapter_export.onnx.named import named_tensor

    return named_tensor(source.base, key)


def _head_choice(
    base: Path, labels: str | None, pooling: str | None, activation: str | None, without_head: bool
) -> HeadChoice:
    from adapter_export.interop.peft.head import HeadChoice
    from adapter_export.interop.peft.labels import known_labels

    return HeadChoice(
        pooling,
        activation,
        None if labels is None else tuple(label.strip() for label in labels.split(",")),
        known_labels(base / "config.json") if base.is_dir() else (),
        leave_out=without_head,
    )
