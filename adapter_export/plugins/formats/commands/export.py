"""Write an adapter in the format of another library."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from adapter_export.address import Address, PathLike, is_remote, locate, repository_in
from adapter_export.bases.adapters import load_adapter
from adapter_export.bases.base import Base, OpenOptions
from adapter_export.bases.comparing import compare_outputs
from adapter_export.commands.command import Command, Screen
from adapter_export.errors import UsageError, moved
from adapter_export.option import SITE_MAP, TRUST_PICKLE, Force, Option
from adapter_export.plugins.formats.exporting import adapter_in_bundle, adapter_with_base, is_bundle
from adapter_export.reporting import SILENT, Reporter
from adapter_export.safe_io.output import Output
from adapter_export.tables import Described, number_of
from adapter_export.words import argument

if TYPE_CHECKING:
    from adapter_export.graph.adapter import Adapter
    from adapter_export.plugins.formats.exporters.export_format import ExportRequest, LoadsAs


def _format_names() -> tuple[str, ...]:
    from adapter_export.plugins.formats.exporters import FORMATS

    return tuple(FORMATS)


@dataclass(frozen=True, repr=False)
class Exported(Described):
    """An adapter in the format of another library.

    `form` is the library's name for it, such as `LORA`; `modules` are the module paths at which it acts. `error` is the
    largest relative difference after reading it back, in float64. `loaded` is the largest relative difference of the
    library's own outputs, in float32, or `None` if they were not compared.
    """

    path: Path
    to: str
    form: str
    modules: tuple[str, ...]
    tensors: int
    error: float
    loaded: float | None = None

    def described(self) -> Mapping[str, object]:
        """Return the facts of `repr` and notebooks."""
        facts: dict[str, object] = {"path": self.path, "to": self.to, "form": self.form}
        return {
            **facts,
            "modules": len(self.modules),
            "tensors": self.tensors,
            "error": self.error,
            "loaded": self.loaded,
        }


def export(
    source: Annotated[Adapter | Address, Option(metavar="ADAPTER")],
    output: Annotated[PathLike, Option("Folder or file to write.", "PATH", "-o")],
    *,
    to: Annotated[str, Option("Format to write.", choices=_format_names)],
    adapter: Annotated[str | None, Option("Adapter of the bundle. Default: its only one.", "NAME")] = None,
    base: Annotated[
        Base | Address | None, Option("The model that the adapter was trained on. Default: the bundle's.", "MODEL")
    ] = None,
    base_name: Annotated[
        str | None,
        Option("Hub id of the base, for the config. Default: the recorded one.", "ID"),
    ] = None,
    prefix: Annotated[
        str | None,
        Option("Module path of the base in the target model, such as `bert`. Default: from the head.", "PATH"),
    ] = None,
    gguf_base: Annotated[PathLike | None, Option("Base as a GGUF file, for `--to gguf`.", "FILE")] = None,
    without_head: Annotated[bool, "Omit the prediction head."] = False,
    site_map: Annotated[PathLike | None, SITE_MAP] = None,
    trust_pickle: Annotated[bool, TRUST_PICKLE] = False,
    force: Force = False,
    reporter: Reporter = SILENT,
) -> Exported:
    """Write an adapter in the format of another library.

    ADAPTER is an adapter folder or a bundle. Its formula, not the name of its kind, determines the exported type; an
    adapter that the library cannot compute is refused. The result is read back and compared with the adapter before it
    gets its name.

    Args:
        source: an adapter, its folder, or a bundle.
        output: the folder or file to write.
        base: the model it was trained on, whose module paths the other library needs; a bundle records them.
        site_map: the sites of the base.
        trust_pickle: load the base even if it could run code.
        force: replace an existing output.
        reporter: receives each step, and notes on differences.

    Raises:
        AdapterError: the format cannot express it, or the base lacks module paths.
        UsageError: no base is given for an adapter folder, or no adapter of the bundle is chosen.
        ParityError: the result does not match the adapter; nothing is kept.
        OutputExistsError, WriteError: the output cannot be written.
    """
    from adapter_export.plugins.formats.exporters import FORMATS
    from adapter_export.plugins.formats.exporters.proof import compare_with_export

    if to not in FORMATS:
        raise UsageError("unknown format", found=f"`{to}`", expected=", ".join(FORMATS))
    chosen, target = FORMATS[to], Output(Path(output), force)
    target.ensure_writable(folder=chosen.is_folder, sources=[source, base, gguf_base])
    request, opened = _request(source, adapter, base, OpenOptions(site_map, trust_pickle), reporter)
    if without_head:
        request = replace(request, adapter=request.adapter.without_head())
    if opened is not None and opened.source is not None:
        base_name = base_name or repository_in(opened.source)
    request = replace(
        request, base_name=base_name, prefix=prefix, base_file=None if gguf_base is None else Path(gguf_base)
    )
    if chosen.names_class:
        request = replace(request, model_class=_model_class(request.base.model_type))
    reporter.step(f"writing it for {chosen.library}")
    with target.folder() if chosen.is_folder else target.file() as temporary, moved(temporary, target.path):
        written = chosen.write(request, temporary)
        reporter.step("comparing the result with the adapter")
        error = compare_with_export(request, chosen.read_back(request, temporary), chosen.allowed)
        loaded = None
        if opened is not None and to in _LIBRARIES and written.loads_as is not None:
            loaded = _LIBRARIES[to](opened, request.adapter, written.loads_as, temporary, reporter)
    for note in written.notes:
        reporter.warn(note)
    return Exported(target.path, to, written.form, tuple(written.modules), written.tensors, error, loaded)


def _in_peft(base: Base, adapter: Adapter, head: LoadsAs, folder: Path, reporter: Reporter) -> float | None:
    """Compare PEFT's outputs with those of base and adapter; `None` without PEFT or the model's folder."""
    if base.form != "folder" or base.path is None or find_spec("peft") is None:
        return None
    from adapter_export.torch_backend.peft_model import peft_folder

    reporter.step("comparing it with PEFT")
    run = peft_folder(base.path, base.torch, folder, (head.classes, head.results) if head.classes else None)
    called: Mapping[str, str] = {} if adapter.head is None else {adapter.head.output: "logits"}
    error, scale, _ = compare_outputs(base, adapter, run, "the adapter in PEFT", called)
    return error / scale


_LIBRARIES: Mapping[str, Callable[[Base, Adapter, LoadsAs, Path, Reporter], float | None]] = {"peft": _in_peft}
"""Comparisons with libraries that can be imported, by format."""


def _request(
    source: Adapter | Address,
    adapter: str | None,
    base: Base | Address | None,
    options: OpenOptions,
    reporter: Reporter,
) -> tuple[ExportRequest, Base | None]:
    """Return the request, and the opened base if the bundle's record of it is not enough."""
    from adapter_export.plugins.formats.exporters.export_format import ExportRequest

    view = None
    if isinstance(source, str | Path) and is_remote(source):
        source = locate(source, "artifact", reporter).path
    if isinstance(source, str | Path) and is_bundle(source):
        source, view = adapter_in_bundle(Path(source), adapter)
    elif adapter is not None:
        raise UsageError(argument("adapter") + " is for a bundle", where=str(source), found=f"`{adapter}`")
    if base is not None:
        loaded, opened = adapter_with_base(source, base, options, reporter)
        return ExportRequest(loaded, opened.view), opened
    if view is None or isinstance(source, str | Path):
        if isinstance(source, str | Path):
            load_adapter(source)  # a wrong folder is reported before the base that its adapter would need
        raise UsageError(
            "other libraries find layers by module path, which only the base records",
            where=str(source),
            fix="name the model that it was trained on with "
            + argument("base", words="MODEL")
            + ", or a bundle with it",
        )
    return ExportRequest(source, view, all_layers=False), None


def _model_class(model_type: str | None) -> str | None:
    """Return the class of transformers' bare model of an architecture; `None` if transformers is not installed."""
    if model_type is None or find_spec("transformers") is None:
        return None
    from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

    name = MODEL_MAPPING_NAMES.get(model_type)
    return name if isinstance(name, str) else None


def _show(exported: Exported, screen: Screen) -> None:
    modules = f"{number_of(len(exported.modules), 'module')}, {exported.tensors} tensors"
    screen.report(f"wrote {exported.path}: {exported.form} at {modules}.")
    screen.report(f"Read back, it is within {exported.error:.1e} of the adapter, in float64.")
    if exported.loaded is not None:
        screen.report(f"Loaded by the library, its outputs are within {exported.loaded:.1e}, in float32.")


def _document(exported: Exported, screen: Screen) -> Mapping[str, object]:
    return {
        "path": str(exported.path),
        "to": exported.to,
        "form": exported.form,
        "modules": list(exported.modules),
        "tensors": exported.tensors,
        "error": exported.error,
        "loaded": exported.loaded,
        "notes": list(screen.notes),
    }


COMMAND = Command(
    export,
    _show,
    document=_document,
    examples=(
        "adapter-export export lora --to peft --base model.pt -o lora_peft",
        "adapter-export export bundle --adapter sentiment --to adapterhub -o sentiment_adapterhub",
        "adapter-export export lora --to gguf --base HF_FOLDER --gguf-base base.gguf -o lora.gguf",
    ),
)
