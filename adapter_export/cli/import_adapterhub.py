"""`adapter-export import adapterhub`: a folder that AdapterHub's library wrote becomes an adapter."""

from __future__ import annotations

from pathlib import Path

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
    from adapter_export.cli.imported import report_adapter
    from adapter_export.cli.places import with_site_map
    from adapter_export.cli.sources import open_source
    from adapter_export.format.adapter_files import write_adapter
    from adapter_export.interop.adapterhub.importing import choose, import_folder

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
