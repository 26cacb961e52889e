"""A folder of AdapterHub, of one adapter or of a setup, becomes an adapter for a base."""

from __future__ import annotations

from pathlib import Path

from adapter_export.dtypes import Weights
from adapter_export.errors import within
from adapter_export.graph.adapter import Adapter, Head
from adapter_export.graph.kinds.adapterhub import BottleneckConfig
from adapter_export.importers.adapterhub.compositions import compile_setup
from adapter_export.importers.adapterhub.config import LoraConfig, check_base, read_config
from adapter_export.importers.adapterhub.folder import Saved, choose, is_setup, names_of, read_adapter_folder
from adapter_export.importers.adapterhub.heads import import_head
from adapter_export.importers.adapterhub.methods import import_bottleneck, import_low_rank, without_unused_inverse
from adapter_export.importers.adapterhub.setups import head_notes, read_setup, setup_head
from adapter_export.importers.take import Imported, ReadPickle, Taker
from adapter_export.sites.site import SiteMap

_NAMES: dict[tuple[object, ...], str] = {
    # parallel, norm before, norm after, attention, ffn, Kronecker products, learned factors
    (False, True, True, False, True, False, False): "seq_bn",
    (False, False, True, True, True, False, False): "double_seq_bn",
    (True, False, True, False, True, False, False): "par_bn",
    (True, False, True, False, True, False, "learned"): "scaled_par_bn",
    (False, True, False, False, True, False, "channel"): "adapter_plus",
    (False, False, True, True, True, True, False): "compacter",
    (False, True, True, False, True, True, False): "compacter++",
}
"""What AdapterHub calls a config whose name its files do not hold: the class is lost when it is saved."""


def import_adapterhub(
    folder: Path,
    sites: SiteMap,
    *,
    name: str,
    base: str,
    member: str | None = None,
    with_head: bool = True,
    by_number: bool = False,
    model_type: str | None = None,
    read_pickle: ReadPickle | None = None,
) -> Imported:
    """Import an adapter that AdapterHub's library saved, or a composition that it saved as a setup.

    Args:
        folder: of one adapter, of several, or of a setup.
        sites: of the base.
        name: what users will call it.
        base: the fingerprint of the base.
        member: which adapter, in a folder of several; in one of a setup, none for the setup as a whole.
        with_head: whether its head is imported, where it has one.
        by_number: match layers by their numbers if no path agrees, whatever the architecture.
        model_type: the architecture of the base by its name in transformers, if it is known.
        read_pickle: reads files of `torch.save`; without it, safetensors alone are read.

    Raises:
        UsageError: there are several and none is named, or a composition is not imported as a whole.
        FileError, FormatError, VersionError, TensorError: the folder's files break their format.
        MissingExtraError: the tensors are pickled, and nothing reads a pickle.
        AdapterError: it does not fit the base, or cannot be expressed; the message names what.
    """
    path = choose(folder, member)
    if is_setup(path) and path == folder:
        return _import_setup(path, sites, name, base, with_head, by_number, model_type, read_pickle)
    read = read_adapter_folder(path, read_pickle)
    with within(read.adapter.path):
        config = read_config(read.adapter.document)
        check_base(config, read.interface, sites, model_type, by_number=by_number)
    names, notes, method = names_of(read.adapter.tensors, config.name), config.notes, config.method
    taker = Taker(read.adapter.tensors, f"`{read.adapter.weights.name}`")
    with within(path):
        if isinstance(method, LoraConfig):
            kind = "lora" if method.composition_mode == "add" else "ia3"
            notes += import_low_rank(method, names, taker, sites, by_number=by_number)
        else:
            method, more = without_unused_inverse(method, read.adapter.document, names)
            kind = kind_of(method)
            notes += import_bottleneck(method, names, taker, sites, kind, by_number=by_number) + more
        taker.check()
    notes += tuple(taker.notes())
    head, weights, more = _head(read.head if with_head else None, sites)
    if read.head is not None and not with_head:
        more = ("its head was left out",)
    document = read.adapter.document
    kept = {key: document[key] for key in ("model_name", "model_class", "model_type", "version") if document.get(key)}
    record = {"library": "adapters", "name": config.name, "config": dict(document["config"]), **kept}
    weights = {**taker.weights, **weights}
    adapter = Adapter(name, kind, base, taker.graphs, taker.placements, weights, head, {"imported_from": record})
    return Imported(adapter, notes + more)


def _import_setup(
    path: Path,
    sites: SiteMap,
    name: str,
    base: str,
    with_head: bool,
    by_number: bool,
    model_type: str | None,
    read_pickle: ReadPickle | None,
) -> Imported:
    setup = read_setup(path, read_pickle)
    for one in setup.members.values():
        with within(one.folder.adapter.path):
            check_base(one.config, one.folder.interface, sites, model_type, by_number=by_number)
    with within(path):
        made, notes = compile_setup(setup, sites, name, base, by_number=by_number, read_pickle=read_pickle)
    saved = setup_head(setup, read_pickle) if with_head else None
    head, weights, more = _head(saved, sites)
    configs = {name: dict(one.folder.adapter.document["config"]) for name, one in setup.members.items()}
    record = {"library": "adapters", "setup": dict(setup.document), "members": configs}
    weights = {**made.weights, **weights}
    adapter = Adapter(name, made.kind, base, made.graphs, made.placements, weights, head, {"imported_from": record})
    return Imported(adapter, (*notes, *more, *head_notes(setup, saved)))


def _head(saved: Saved | None, sites: SiteMap) -> tuple[Head | None, Weights, tuple[str, ...]]:
    if saved is None:
        return None, {}, ()
    head, taker, notes = import_head(saved, sites.width)
    return head, taker.weights, notes


def kind_of(config: BottleneckConfig) -> str:
    """The name of the kind with these placements; `bottleneck` for those without one."""
    learned = config.scaling if isinstance(config.scaling, str) else False
    placements = (config.original_ln_before, config.original_ln_after, config.mh_adapter, config.output_adapter)
    return _NAMES.get((config.is_parallel, *placements, config.phm_layer, learned), "bottleneck")
