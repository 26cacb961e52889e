"""Import an adapter from a fine-tuned or merged checkpoint."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from adapter_export.address import Address, PathLike, locate
from adapter_export.bases.base import Base, OpenOptions
from adapter_export.bases.opening import base_for
from adapter_export.bases.task_facts import TaskFacts
from adapter_export.commands.adapters._made_adapter import (
    ADAPTER_FOLDER,
    AdapterOutput,
    WithoutHead,
    adapter_document,
    show_adapter,
)
from adapter_export.commands.command import Command, Screen
from adapter_export.errors import AdapterError, BaseModelError, RequestError, UsageError
from adapter_export.extras import require
from adapter_export.option import LABEL, LABELLED_DATA, PAIR, SITE_MAP, TEXT, TRUST_PICKLE, Force, Option, OptionsOf
from adapter_export.plugin import public_calls
from adapter_export.plugins.formats.importing import complete_import, last_token_notes
from adapter_export.reporting import SILENT, Reporter
from adapter_export.tables import Described, Table
from adapter_export.words import argument, joined

if TYPE_CHECKING:
    from adapter_export.graph.adapter import Adapter
    from adapter_export.plugins.formats.importers.finetuned.finetuned_head import FinetunedHead
    from adapter_export.plugins.formats.importers.finetuned.finetuned_importer import CheckTask
    from adapter_export.plugins.formats.importers.finetuned.finetuned_result import FinetunedImport
    from adapter_export.plugins.formats.importers.finetuned.same_base import BaseWeights

_BYTES = 4


def import_finetuned(
    model: Annotated[Address, Option(metavar="MODEL")],
    base: Annotated[Base | Address, Option("The model that it was fine-tuned from.", "MODEL", "--base")],
    output: Annotated[PathLike | None, ADAPTER_FOLDER] = None,
    *,
    name: Annotated[str | None, "Name of the adapter. Default: the name of the output."] = None,
    rank: Annotated[
        int | None, Option("Highest rank of a layer; larger changes are approximated.", "N", least=1)
    ] = None,
    size: Annotated[
        str | None, Option("Largest size of the adapter, such as `4MB`, or `5%` of the base.", "SIZE")
    ] = None,
    dense: Annotated[
        bool, "Carry full-rank changes whole, which makes the adapter as large as the layers it changes."
    ] = False,
    leave_out: Annotated[
        tuple[str, ...],
        "Modules whose changes are left out, by parts of their names: `embeddings,LayerNorm`.",
    ] = (),
    without_head: WithoutHead = False,
    data: Annotated[Address | None, LABELLED_DATA] = None,
    text: Annotated[str, TEXT] = "text",
    pair: Annotated[str | None, PAIR] = None,
    label: Annotated[str | None, LABEL] = None,
    site_map: Annotated[PathLike | None, SITE_MAP] = None,
    trust_pickle: Annotated[bool, TRUST_PICKLE] = False,
    force: Force = False,
    reporter: Reporter = SILENT,
    **facts: Annotated[Any, OptionsOf(TaskFacts)],
) -> FinetunedImport:
    """Import the difference of a fine-tuned or merged MODEL from its base as an adapter.

    MODEL is a Hugging Face folder or a Hub id. A merged LoRA or DoRA is found and imported without loss. Changes of
    full rank need `--rank` or `--size`, and become their best approximation; with `--data`, checkpoint and adapter are
    compared on your rows. Every tensor is equal to the base's, carried, or refused by name; `--leave-out` omits it.

    Args:
        model: the fine-tuned model.
        base: a torch archive or a Hugging Face folder.
        output: the folder to save it to. Default: do not save it.
        name: name of the adapter. Default: the name of the output, or of the model.
        data: labelled rows, as `compare` reads them.
        site_map: the sites of the base.
        trust_pickle: load the base even if it could run code.
        force: replace an existing folder.
        reporter: receives each step, and notes on tensors without effect.

    Raises:
        UsageError: options exclude each other, or a module that is left out has no changes.
        AdapterError: an adapter cannot carry a change; its subclass `OtherModulesError`: MODEL has another base.
        BaseModelError, FileError, FormatError: the base or MODEL cannot be read.
        ParityError: transformers computes something else with the adapter's weights.
        OutputExistsError, WriteError: the output cannot be written.
    """
    for library in ("torch", "transformers"):
        require(library, "hf", "importing a fine-tuned model")
    from adapter_export.plugins.formats.importers.finetuned.finetuned_importer import (
        FinetunedRequest,
        import_checkpoint,
    )
    from adapter_export.plugins.formats.importers.finetuned.finetuned_result import FinetunedImport
    from adapter_export.plugins.formats.importers.finetuned.library_proof import prove_import
    from adapter_export.plugins.formats.importers.finetuned.rank_choice import limits_of
    from adapter_export.plugins.formats.importers.tensor_map import Imported
    from adapter_export.torch_backend.checkpoint_folder import open_checkpoint

    target = AdapterOutput(output, force, [model, base, data])
    located = locate(model, "model", reporter)
    rows = None if data is None else _Rows(data, text, pair, label, reporter)
    opened = base_for(base, OpenOptions(site_map, trust_pickle), reporter)
    if not located.path.is_dir():
        raise BaseModelError("is no Hugging Face folder", where=located.path, expected="the folder of a model")
    limits = limits_of(rank, size, dense, _BYTES * opened.torch.parameters)
    head = None if without_head else _modules_head(located.path, reporter)
    named = target.name(name) or located.path.resolve().name
    request = FinetunedRequest(named, limits, tuple(leave_out), without_head, head)
    with open_checkpoint(located.path) as checkpoint:
        weights = opened.view, _weights(opened)
        imported = import_checkpoint(checkpoint, weights, request, reporter, _checked(rows))
        reporter.step("comparing with transformers")
        deviation = prove_import(imported, checkpoint, opened)
    notes = (*imported.notes, *last_token_notes(imported.adapter, opened))
    adapter = complete_import(Imported(imported.adapter, notes), opened, facts, reporter, located)
    comparison = None if rows is None else rows.compare(located.path, adapter, opened)
    return FinetunedImport(
        target.save(adapter),
        checkpoint.dtype,
        imported.layers,
        imported.comparison.equal,
        (*imported.left_out, *imported.head.omitted),
        deviation,
        comparison,
        notes,
    )


class _Rows:
    """Labelled rows on which checkpoint and adapter are compared.

    Raises:
        UsageError: the plug-in that compares is missing.
        DataError: the file does not exist.
    """

    def __init__(self, data: Address, text: str, pair: str | None, label: str | None, reporter: Reporter) -> None:
        module = public_calls().get("compare")
        if module is None:
            raise UsageError("the plug-in `lab` is missing, which compares models on rows", found=argument("data"))
        self._compare: Any = importlib.import_module(module).compare
        self._path = locate(data, "table", reporter).path
        self._columns: dict[str, Any] = {"text": text, "pair": pair, "label": label}
        self._reporter = reporter

    def check(self, head: FinetunedHead) -> None:
        """Read the rows for the task of a head; RequestError without a task."""
        from adapter_export.format.tabular.eval_data import DataOptions
        from adapter_export.format.tabular.labelled import Columns

        task = None if head.head is None else head.head.task
        if task is None:
            raise RequestError(
                "has no head with a task, so rows cannot show a loss",
                found="no head" if head.head is None else "a head without a task",
                fix="remove " + argument("data"),
            )
        columns = Columns(self._columns["text"], self._columns["pair"], self._columns["label"])
        DataOptions(columns, None, skip_incomplete=False, limit=None).read(self._path, task).check_labels(task)

    def compare(self, model: Path, adapter: Adapter, base: Base) -> Described:
        """Return the scores of both."""
        self._reporter.step("comparing on the rows")
        comparison: Described = self._compare(
            model, adapter, base=base, data=self._path, rounds=0, reporter=self._reporter, **self._columns
        )
        return comparison


def _modules_head(folder: Path, reporter: Reporter) -> FinetunedHead | None:
    """Return the head of the modules in a folder of sentence-transformers; `None` for other folders.

    Raises:
        AdapterError: the modules cannot be expressed.
    """
    from adapter_export.plugins.formats.importers.finetuned.finetuned_head import captured_head
    from adapter_export.torch_backend.base.sentences.sentence_folder import MODULES_FILE

    if not (folder / MODULES_FILE).is_file():
        return None
    opened = base_for(folder, OpenOptions(), reporter)
    if opened.base_head is None:
        raise AdapterError(
            "has modules after the model that an adapter cannot carry",
            where=folder / MODULES_FILE,
            found=joined(opened.notes, "; "),
            fix="import it without them: " + argument("without_head", True),
        )
    return captured_head(opened.base_head)


def _checked(rows: _Rows | None) -> CheckTask:
    return (lambda _: None) if rows is None else rows.check


def _weights(base: Base) -> BaseWeights:
    """Return the tensors of a base that a checkpoint can contain: no constants."""
    from adapter_export.plugins.formats.importers.finetuned.same_base import BaseWeights
    from adapter_export.torch_backend.base.torch_base import tensors

    program = base.torch.program
    return BaseWeights(
        {name: tensor for name, tensor in tensors(program).items() if name in program.state_dict}, base.fingerprint
    )


def _show(result: FinetunedImport, screen: Screen) -> None:
    """Render the ranks, the loss and the written adapter."""
    if result.layers:
        table = result.table()
        screen.show(str(table.title), replace(table, title=None))
    deviation = result.deviation
    within = f"within {deviation.difference:.1e} of the checkpoint's, which are up to {deviation.scale:.3g}"
    screen.report(f"Outputs of base and adapter on sample inputs are {within}.")
    if not all(layer.exact for layer in result.layers):
        screen.warn(f"the adapter is an approximation: it carries {result.captured:.1%} of the change's norm.")
    if result.comparison is not None:
        for table in _score_tables(result.comparison):
            screen.show(str(table.title), replace(table, title=None))
    show_adapter(result.adapter, screen)


def _score_tables(comparison: Any) -> Sequence[Table]:
    return (comparison.table(), comparison.agreement(), comparison.tests(comparison.metrics[:1]))


def _document(result: FinetunedImport, screen: Screen) -> Mapping[str, object]:
    comparison: Any = result.comparison
    return {
        **adapter_document(result.adapter, screen),
        "dtype": result.dtype,
        "exact": result.is_exact,
        "captured": result.captured,
        "equal": result.equal,
        "left_out": list(result.left_out),
        "layers": [
            {
                "path": layer.path,
                "rank": layer.rank,
                "exact": layer.exact,
                "scaled": layer.change.scale is not None,
                "captured": layer.captured,
                "bytes": layer.size,
            }
            for layer in result.layers
        ],
        "deviation": {"difference": result.deviation.difference, "scale": result.deviation.scale},
        "comparison": None if comparison is None else comparison.to_json(),
    }


COMMAND = Command(
    import_finetuned,
    _show,
    document=_document,
    examples=(
        "adapter-export import finetuned merged_lora --base model.pt -o a",
        "adapter-export import finetuned finetuned_model --base HF_FOLDER --rank 16 --data rows.tsv -o a",
        "adapter-export import finetuned finetuned_model --base HF_FOLDER --size 5% --leave-out embeddings -o a",
    ),
)
