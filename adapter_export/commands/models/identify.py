"""Prove that an onnxruntime-genai folder contains a torch model's weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from adapter_export.address import Address, PathLike
from adapter_export.bases.base import Base, OpenOptions
from adapter_export.bases.forms import GenaiBase
from adapter_export.bases.opening import unopened
from adapter_export.commands.command import Command, Screen, next_line
from adapter_export.errors import BaseModelError
from adapter_export.extras import require
from adapter_export.option import TRUST_PICKLE, Force, Option
from adapter_export.reporting import SILENT, Reporter
from adapter_export.safe_io.output import Output
from adapter_export.tables import Described, Table, number_of

if TYPE_CHECKING:
    from adapter_export.numerics.weight_match import Counterpart
    from adapter_export.onnx_backend.base.base_identity import BaseIdentity


@dataclass(frozen=True, repr=False)
class Identified(Described):
    """Proof that a folder contains the weights of a trained model.

    Attributes:
        path: the written record.
        identity: its contents.
    """

    path: Path
    identity: BaseIdentity

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the trained model, which is now the folder's, too."""
        return self.identity.base

    @property
    def weights(self) -> tuple[Counterpart, ...]:
        """Pairs of graph and trained weights, row by row, with their differences."""
        return self.identity.weights

    def described(self) -> Mapping[str, object]:
        """Return the facts of `repr` and notebooks."""
        return {
            "path": self.path,
            "fingerprint": self.fingerprint[:19],
            "weights": len(self.weights),
            "steps": max(each.steps for each in self.weights),
        }

    def table(self) -> Table:
        """Return the graph's weights with their sources."""
        rows = [
            (
                each.weight,
                each.trained,
                each.stored,
                f"{each.rows:,}",
                f"{each.steps:.3f}",
                f"{each.deviation:.2g}",
                f"{each.saturated:,}",
            )
            for each in self.weights
        ]
        columns = ("weight of the graph", "trained weight", "stored as", "rows", "steps", "deviation", "saturated")
        return Table(columns, rows, numbers="lllrrrr", spare=("saturated", "deviation", "rows"))


def identify(
    folder: Annotated[PathLike, Option(metavar="FOLDER")],
    weights: Annotated[
        Base | Address,
        Option(
            "Torch archive with the language head, or Hugging Face folder, of the same model.",
            "MODEL",
            "--weights",
        ),
    ],
    *,
    trust_pickle: Annotated[bool, TRUST_PICKLE] = False,
    force: Force = False,
    reporter: Reporter = SILENT,
) -> Identified:
    """Prove that an onnxruntime-genai FOLDER contains a torch model's weights, and record it there.

    Every weight of the graph is dequantized and compared with its trained source: each number must be within half a
    rounding step. Weights that were joined, split or transposed are recognized, and every weight of both models must be
    matched. FOLDER then has the torch model's fingerprint and module paths, so that adapters trained on it can be
    imported and built without further options. The record is `base_identity.json`.

    Args:
        folder: output of onnxruntime-genai's model builder.
        weights: the torch model it was made from, with its language head.
        trust_pickle: load an archive even if it could run code.
        force: replace an existing record.
        reporter: receives each step.

    Raises:
        BaseModelError: weights or their sites differ; the message says which, and by how much.
        OutputExistsError, WriteError: the record cannot be written.
    """
    from adapter_export.format.files import IDENTITY_FILE
    from adapter_export.numerics.paired_sites import SiteWeights, pair_sites
    from adapter_export.numerics.weight_match import match_weights
    from adapter_export.onnx_backend.base.base_identity import IDENTITY_VERSION, BaseIdentity

    base = unopened(folder)
    if not isinstance(base, GenaiBase) or base.path is None:
        raise BaseModelError(
            "is not an onnxruntime-genai folder",
            where=base.path,
            found=f"a {base.form_name}",
            expected="a folder with `genai_config.json`",
            fix="pass the folder written by `python -m onnxruntime_genai.models.builder`",
        )
    output = Output(base.path / IDENTITY_FILE, force)
    output.ensure_writable()
    require("torch", "torch", "comparing with a torch model")
    from adapter_export.onnx_backend.base.weight_uses import weight_uses
    from adapter_export.sites.site_map import sites_of
    from adapter_export.torch_backend.trained_weights import trained_weights

    reporter.step(f"opening {folder}")
    graph = base.unidentified
    reporter.step("opening the trained model")
    source = unopened(weights, OpenOptions(trust_pickle=trust_pickle))
    source.check_trainable()
    trained = source.torch
    reporter.step("comparing the weights")
    counterparts = match_weights(weight_uses(graph.model), trained_weights(trained), base.path)
    stored_sites = SiteWeights(graph.index, graph.sites)
    pairs = pair_sites(
        stored_sites, SiteWeights(trained.index, sites_of(trained.flow, "torch")), counterparts, base.path
    )
    identity = BaseIdentity(
        IDENTITY_VERSION,
        graph.fingerprint,
        trained.fingerprint,
        trained.model_type,
        counterparts,
        pairs.renamed,
        pairs.paths,
    )
    with output.file() as temporary:
        temporary.write_bytes(identity.to_json())
    return Identified(output.path, identity)


def _show(identified: Identified, screen: Screen) -> None:
    screen.show(identified.table(), "")
    numbers = f"{number_of(len(identified.weights), 'weight')} equal within rounding; none is left over"
    screen.report(f"wrote {identified.path}: fingerprint {identified.fingerprint[:19]}…, {numbers}.")
    screen.report(f"Next: {next_line('sites', screen.given['folder'])}")
    screen.report("Adapters that were trained on the torch model can now be built into a bundle of this folder")


def _document(identified: Identified, screen: Screen) -> Mapping[str, object]:
    return {"path": str(identified.path), **asdict(identified.identity), "notes": list(screen.notes)}


COMMAND = Command(
    identify,
    _show,
    document=_document,
    examples=(
        "adapter-export identify model --weights llama.pt",
        "adapter-export identify model --weights path/to/llama --json",
    ),
)
