"""`adapter-export import`: adapters that other libraries trained, one command for each library."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import click

import adapter_export as ae
from adapter_export.cli.group import Entry, LazyGroup
from adapter_export.cli.help_page import examples
from adapter_export.cli.options import AdapterFolder, Force, Json, SiteMapFile, TrustPickle, command
from adapter_export.option import Option
from adapter_export.safe_io.output import Output

if TYPE_CHECKING:
    from adapter_export import Adapter


def _importer(load: Callable[..., Adapter], lines: Sequence[str], help_text: str) -> click.Command:
    """Return the command of an importer; they differ in their call and their help."""

    def run(
        folder: Path,
        *,
        base: Annotated[Path, Option("The model that the adapter was trained on.", "MODEL")],
        name: Annotated[
            str | None, Option("What users will call it; in a folder of several, also which one. The output's name.")
        ] = None,
        output: AdapterFolder,
        force: Force = False,
        site_map: SiteMapFile = None,
        trust_pickle: TrustPickle = False,
        as_json: Json = False,
        **options: Any,
    ) -> None:
        from adapter_export.cli.bases import Noted, opened, report_adapter

        Output(output, force).ensure_writable(folder=True, sources=[folder, base])
        model = opened(base, site_map, trust_pickle, from_record=True)
        reporter, named = Noted(), name or output.resolve().name
        adapter = load(folder, model, name=named, member=name, reporter=reporter, **options)
        ae.save(adapter, output, force=force)
        report_adapter(adapter, reporter.notes, output, as_json)

    run.__doc__, run.__name__ = help_text, load.__name__.removeprefix("import_")
    return command(*lines, like=load)(run)


peft = _importer(
    ae.import_peft,
    (
        "adapter-export import peft lora_folder --base model.pt -o a",
        "adapter-export import peft lora_folder --base HF_FOLDER --labels negative,positive -o sentiment",
    ),
    """Import an adapter that PEFT saved in FOLDER: any whose change of the base's weights is fixed.

    FOLDER has `adapter_config.json` and `adapter_model.safetensors` or `adapter_model.bin`, of which only tensors are
    read. PEFT need not be installed, and torch only for a `.bin`. What cannot be expressed is refused by name.
    """,
)

adapterhub = _importer(
    ae.import_adapterhub,
    (
        "adapter-export import adapterhub saved/sentiment --base model.pt -o sentiment",
        "adapter-export import adapterhub saved --name sentiment --base model.onnx -o sentiment",
        "adapter-export import adapterhub setup --base model.pt -o stacked",
    ),
    """Import an adapter that AdapterHub's library saved in FOLDER.

    FOLDER has `adapter_config.json` and `pytorch_adapter.bin` or `adapter.safetensors`, of which only tensors are read.
    Bottlenecks with every option, LoRA, IA3, invertible adapters and prediction heads are imported; the library is not
    needed, and torch only for a `.bin`. What cannot be expressed is refused by name.

    A folder that `save_adapter_setup` wrote becomes one adapter with its members inside, a `Stack`, `Average` or `Fuse`
    as nested as the library allows; `--name` with the name of a member imports that one alone.
    """,
)

LIBRARIES = {
    "adapterhub": Entry("An adapter, with its head, that AdapterHub's library saved.", lambda: adapterhub),
    "peft": Entry("An adapter that PEFT saved, if its change of the weights is fixed.", lambda: peft),
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
