"""The `Trainer` of transformers with an attached adapter."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from adapter_export.address import Address, PathLike, locate
from adapter_export.bases.base import Base
from adapter_export.bases.forms import ArchiveBase
from adapter_export.bases.opening import open_base
from adapter_export.commands.bundles.build import build
from adapter_export.errors import BaseMismatchError, BaseModelError, UsageError
from adapter_export.extras import require
from adapter_export.reporting import SILENT, Reporter
from adapter_export.safe_io.output import Output
from adapter_export.words import argument

if TYPE_CHECKING:
    from adapter_export.torch_backend.attach import AttachedAdapter
    from adapter_export.torch_backend.attached_trainer import AdapterCallback


def trainer_callback(
    adapter: AttachedAdapter,
    output: PathLike,
    *,
    bundle: PathLike | None = None,
    base: Base | Address | None = None,
    data: Mapping[str, Address] | None = None,
    name: str | None = None,
    force: bool = False,
    reporter: Reporter = SILENT,
) -> AdapterCallback:
    """Return a callback for the `Trainer` of transformers that saves an adapter, and builds a bundle of it.

    ::

        with ae.attach(model, labels=["bad", "good"]) as adapter:
            saving = ae.trainer_callback(adapter, "reviews", bundle="bundle")
            Trainer(model, arguments, train_dataset=rows, callbacks=[saving]).train()

    The adapter is saved in each checkpoint, as `checkpoint-N/adapter_export`, and at the end as `output`: the best one
    with `load_best_model_at_end`, else the last. Its training record is that of `train`: task, settings, number of
    rows, losses and scores. A resumed run writes one record of both parts.

    Args:
        adapter: what `attach` returned, while it is attached.
        output: the adapter folder to write.
        bundle: the bundle to build at the end.
        base: the model that the bundle is built of; the attached one, as it was captured, by default. A base with a
            tokenizer makes a bundle that reads texts.
        data: files that the rows were made of, such as `{"training": "train.tsv"}`: their digests are recorded.
        name: what users will call the adapter; the output's name by default.
        force: replace existing files at `output` and `bundle`.
        reporter: receives each step of the build, and its notes.

    Raises:
        OutputExistsError: an output is there.
        BaseMismatchError: `base` is another model than the one that the adapter is attached to.
        UsageError: the bundle cannot be built of the attached model.
    """
    require("transformers", "hf", "the `Trainer` of transformers")
    from adapter_export.safe_io.regular_files import sha256_of
    from adapter_export.sites.site_map import SITE_MAP_KEY
    from adapter_export.torch_backend.attached_trainer import AdapterCallback

    output = Path(output)
    Output(output, force).ensure_writable(folder=True)
    hooked = adapter.adapter
    title = name or output.resolve().name
    model: Base | None = None
    if bundle is not None:
        Output(Path(bundle), force).ensure_writable(folder=True)
        model = ArchiveBase(None, loaded=adapter.base) if base is None else open_base(base)
        if model.fingerprint != adapter.base.fingerprint:
            raise BaseMismatchError(title, found=adapter.base.fingerprint, expected=model.fingerprint)
        if base is None and hooked is not None and hooked.training.get(SITE_MAP_KEY) is not None:
            raise UsageError(
                "the adapter was attached with a site map, and the bundle needs it, too",
                fix="give the base that was opened with it: " + argument("base"),
            )

    def make(folder: Path) -> None:
        assert model is not None  # it is called for a bundle only
        if base is None and any(tensor.device.type != "cpu" for tensor in adapter.base.program.parameters()):
            raise BaseModelError(
                "the model was moved to another device, where it cannot be exported",
                where=folder,
                fix="build the bundle of the adapter, which is saved, with `build`; or give " + argument("base") + ", "
                "captured before the training",
            )
        build(model, [folder], str(bundle), force=force, reporter=reporter)

    files = {part: locate(path, "table").path for part, path in (data or {}).items()}
    return AdapterCallback(
        adapter,
        output,
        name=title,
        sources={part: {"file": path.name, "sha256": sha256_of(path)} for part, path in files.items()},
        force=force,
        build=None if bundle is None else make,
    )
