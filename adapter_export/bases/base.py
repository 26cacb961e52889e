"""Bases: one class per form of a model, opened on demand."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from adapter_export.address import PathLike
from adapter_export.bases.detect import FORM_NAMES, Form
from adapter_export.bases.sites import Sites
from adapter_export.errors import BaseModelError, UsageError
from adapter_export.extras import require
from adapter_export.format.lengths import Fit
from adapter_export.reporting import SILENT, Reporter
from adapter_export.tables import Described

if TYPE_CHECKING:
    import numpy as np

    from adapter_export.bases.base_record import BaseFacts, BaseRecord
    from adapter_export.bases.base_view import ArchitectureHead, BaseView
    from adapter_export.bundle.proof.exact_tensors import Origin
    from adapter_export.format.generation import CapturedChat, GenerationRecord
    from adapter_export.format.golden_texts import GoldenTexts
    from adapter_export.format.lengths import Bounds, Lengths
    from adapter_export.format.manifest import InputRecord, Manifest, OutputRecord, VariantName
    from adapter_export.format.media import CapturedMedia
    from adapter_export.format.precision import PrecisionName
    from adapter_export.graph.adapter import Adapter
    from adapter_export.numerics.lookup_tables import LookupTable
    from adapter_export.numerics.merged_layers import Layer
    from adapter_export.numerics.runner import Runner
    from adapter_export.onnx_backend.base.onnx_base import OnnxBase
    from adapter_export.sites.site import Site, SiteMap
    from adapter_export.sites.site_map import GivenSites, View
    from adapter_export.sites.view import FlowGraph
    from adapter_export.text import Tokenizer
    from adapter_export.torch_backend.base.torch_base import TorchBase

Opened = TypeVar("Opened")


@dataclass(frozen=True)
class OpenOptions:
    """Options for opening a base.

    Attributes:
        site_map: a file with sites that override or complete the detected ones.
        trust_pickle: load an archive that could run code; only for files that you made yourself.
    """

    site_map: PathLike | None = None
    trust_pickle: bool = False

    @cached_property
    def given(self) -> GivenSites | None:
        """Sites of the site map; `FormatError` if the file cannot be read."""
        if self.site_map is None:
            return None
        from adapter_export.format.site_map_json import read_site_map

        return read_site_map(Path(self.site_map))


DEFAULTS = OpenOptions()
"""Defaults: no site map, and no trust in pickles."""


@dataclass(frozen=True)
class Kept:
    """The record of an earlier opening, and the key of everything it depends on."""

    key: str
    record: BaseRecord


@dataclass(frozen=True)
class MergedWeights:
    """Weights of a base after merging an adapter.

    Attributes:
        tensors: new weights and biases by their names in the base, in its memory layout.
        record: `adapter`, `weights_sha256` and the fingerprint of the original `base`.
        head: the adapter's head, which becomes the base head; `None` keeps the existing base head.
    """

    tensors: Mapping[str, np.ndarray]
    record: Mapping[str, str]
    head: Adapter | None = None


@dataclass(frozen=True, repr=False)
class Base(Described):
    """A frozen pretrained model, as returned by `open_base` and `capture`.

    The model is opened when a property needs more than the record of an earlier opening contains.

    Attributes:
        path: the file or folder; `None` for a module captured in memory.
        options: options for opening it.
        kept: the record of an earlier opening, if any.
        fetched: the reference with commit that `path` was fetched from; `None` for a local path.
        form: form of the model.
        trainable: whether torch can train adapters on it.
    """

    path: Path | None
    options: OpenOptions = DEFAULTS
    kept: Kept | None = field(default=None, repr=False)
    fetched: str | None = None

    form: ClassVar[Form]
    trainable: ClassVar[bool]

    def described(self) -> Mapping[str, object]:
        """Return the facts for `repr` and notebooks."""
        path: object = "in memory" if self.path is None else self.path
        facts: dict[str, object] = {"path": path, "form": self.form_name}
        if self.is_open or self.kept is not None:
            facts |= {"inputs": [record.name for record in self.inputs], "fingerprint": self.fingerprint[:19]}
        return facts | ({"parameters": self.parameters, "max_tokens": self.max_tokens} if self.is_open else {})

    @property
    def form_name(self) -> str:
        """Name of the form, such as `torch archive`."""
        return FORM_NAMES[self.form]

    @property
    @abstractmethod
    def model(self) -> TorchBase | OnnxBase:
        """The opened model in its backend."""

    @property
    @abstractmethod
    def torch(self) -> TorchBase:
        """The model for training in torch; `BaseModelError` for an ONNX graph."""

    def _opened(self, load: Callable[[Path], Opened]) -> Opened:
        """Open the model; `BaseModelError` if it no longer matches the record."""
        assert self.path is not None, "a base without a path is loaded"
        model = load(self.path)
        if self.kept is not None and self.record_key() != self.kept.key:
            raise BaseModelError("was changed while it was in use", where=self.path, fix="run again")
        return model

    def record_key(self) -> str | None:
        """Return the current key of the model's record; `None` if it cannot have a record."""
        from adapter_export.bases.base_record import record_key

        site_map = self.options.site_map
        return None if self.path is None else record_key(self.path, None if site_map is None else Path(site_map))

    def write_record(self, key: str) -> None:
        """Write the record of a newly opened base, unless its files have changed since the key was computed."""
        from adapter_export.bases.base_record import BaseRecord, keep_record
        from adapter_export.safe_io.regular_files import sha256_of

        assert self.path is not None, "a base without a path has no key"
        folder = self.path.resolve().parent
        if not all(file.is_relative_to(folder) for file in self.weight_files):
            return
        record = BaseRecord(
            self.fingerprint,
            self.inputs,
            self.outputs,
            self.sites.map,
            self.sites.not_placed,
            tuple(map(str, self.notes)),
            self.model_type,
            self._facts.source,
            self.base_head_facts(),
            {file.relative_to(folder).as_posix(): sha256_of(file) for file in self.weight_files},
        )
        if self.record_key() == key:
            keep_record(key, record)

    def check_trainable(self) -> None:
        """Raise a `BaseModelError` for an ONNX graph, without opening it."""
        if not self.trainable:
            raise BaseModelError(
                f"is an {FORM_NAMES[self.form]}, which torch cannot train",
                where=self.path,
                expected="a torch archive (`.pt`, `.pt2`) or a Hugging Face folder",
                fix="use the model that the graph was exported from",
            )

    @property
    def given(self) -> GivenSites | None:
        """Sites that override or complete the detected ones."""
        return self.options.given

    @property
    def _facts(self) -> BaseFacts:
        return self.model if self.kept is None else self.kept.record

    @property
    def fingerprint(self) -> str:
        """SHA-256 of its weights, as `sha256:<hex>`."""
        return self._facts.fingerprint

    @property
    def inputs(self) -> tuple[InputRecord, ...]:
        """Inputs, in the order of the model."""
        return self._facts.inputs

    @property
    def outputs(self) -> tuple[OutputRecord, ...]:
        """Outputs, in the order of the model."""
        return self._facts.outputs

    @property
    def notes(self) -> tuple[str, ...]:
        """Changes made to the model when it was captured or opened."""
        return self._facts.notes

    @property
    def source(self) -> str | None:
        """Hub repository that it came from, as `hf://owner/name@commit`, if known."""
        return self.fetched or self._facts.source

    @property
    def model_type(self) -> str | None:
        """Name of its architecture in transformers, such as `bert`, if known."""
        return self._facts.model_type

    @property
    def _tokenizer(self) -> str | None:
        return self.model.tokenizer

    @property
    def tokenizer(self) -> str | None:
        """Text of its `tokenizer.json`, if known; `BaseModelError` if it crashes the tokenizers library."""
        text = self._tokenizer
        if text is not None:
            from adapter_export.text import try_tokenizer

            try_tokenizer(text)
        return text

    @property
    def texts(self) -> GoldenTexts | None:
        """Golden texts with ids from the model's own library, if known."""
        return self.model.texts

    @property
    def media(self) -> CapturedMedia | None:
        """Preprocessing of images or audio by the model's own processor, if known."""
        return self.model.media

    @property
    def is_open(self) -> bool:
        """True once the model is open."""
        return "model" in vars(self)

    @property
    def reads(self) -> str | None:
        """`text`, or the modality of its input files, without opening it; `None` if that requires opening it."""
        return None

    @property
    def base_head(self) -> Adapter | None:
        """Head of the captured model, as an adapter without sites.

        `None` if there was none, if it was removed (`notes` has the reason), or if a site map specifies another final
        hidden state.
        """
        return None if self.given is not None and self.given.final else self.model.base_head

    def base_head_facts(self) -> dict[str, Any] | None:
        """Return facts of its base head as JSON data: `task`, `parameters`; `None` without one."""
        if self.kept is not None:
            head = self.kept.record.base_head
            return None if head is None else dict(head)
        own = self.base_head
        if own is None or own.head is None:
            return None
        task = own.head.task
        return {"task": None if task is None else task.document(), "parameters": own.cost().parameters}

    @property
    def parameters(self) -> int:
        """Number of stored floating-point weights."""
        return self.model.parameters

    def tensor(self, name: str) -> np.ndarray | None:
        """Return a floating-point tensor by its name in the torch model; `None` if there is none.

        A matrix of an ONNX graph is returned in the layout of torch's `Linear`, [out, in].
        """
        return self.model.tensor(name)

    @property
    def lengths(self) -> Bounds:
        """Lengths of its dynamic axes; an axis that is not listed may have any length."""
        return self.model.lengths

    @property
    def max_tokens(self) -> int | None:
        """Maximum number of tokens, if known."""
        return self._tokens.maximum

    @property
    def fit(self) -> Fit | None:
        """Token counts to which texts are padded; `None` for a base that accepts every length."""
        return None if self._tokens.unbroken else Fit(self._tokens, self.model.pads)

    @property
    def _tokens(self) -> Lengths:
        from adapter_export.format.manifest import token_lengths

        return token_lengths(self.inputs, self.lengths)

    @property
    def flow(self) -> FlowGraph:
        """Dataflow graph in which sites are detected."""
        return self.model.flow

    @abstractmethod
    def _site_map(self) -> SiteMap:
        """Find the sites; `NoSitesError` if there are none, `UsageError` if the given ones do not fit."""

    @cached_property
    def sites(self) -> Sites:
        """Places where adapters can act.

        Raises:
            NoSitesError: there are none.
            UsageError: the given sites do not fit.
        """
        if self.kept is not None:
            return Sites(self.kept.record.sites, self, self.kept.record.not_placed)
        return Sites(self._site_map(), self)

    @cached_property
    def layer_at(self) -> Callable[[Site], Layer | None]:
        """Function that returns the layer behind a site; `None` if the base does not expose its tensors."""
        from adapter_export.numerics.base_layers import layer_finder

        return layer_finder(self.model)

    @cached_property
    def table_at(self) -> Callable[[Site], LookupTable | None]:
        """Function that returns the table of a lookup; `None` if the base does not expose it."""
        from adapter_export.numerics.lookup_tables import table_finder

        return table_finder(self.model, self.sites.map)

    @property
    def view(self) -> BaseView:
        """The base for importers; `NoSitesError` if sublayers were not placed."""
        from adapter_export.bases.base_view import BaseView

        # lazy: `layer_at` opens the base, which most imports never need
        return BaseView(
            self.fingerprint,
            self.sites.complete,
            self.model_type,
            self.tensor,
            lambda site: self.layer_at(site),
            self.architecture_head,
            lambda site: self.table_at(site),
            self.inputs,
        )

    def architecture_head(
        self,
        endings: Sequence[str],  # noqa: ARG002
        name: str | None,  # noqa: ARG002
        shapes: Mapping[str, tuple[int, ...]],  # noqa: ARG002
    ) -> ArchitectureHead | None:
        """Return the head of the base's architecture, as `HeadOf`; `None` for a base that does not record it."""
        return None

    @abstractmethod
    def exported(self, folder: Path, reporter: Reporter = SILENT) -> OnnxBase:
        """Return the base as an ONNX graph; a torch model is exported into the folder."""

    def checked_export(self, folder: Path, reporter: Reporter = SILENT) -> OnnxBase:
        """Return the base as an ONNX graph whose sites are complete and match this base.

        Raises:
            NoSitesError: sublayers were not placed.
            BaseModelError: the base cannot be exported, or the graph has other sites.
        """
        from adapter_export.sites.site_map import check_complete

        check_complete(self.sites.map, self.given)
        graph = self.exported(folder, reporter)
        check_complete(graph.sites, self.given)
        return graph

    def site_maps(self, folder: Path) -> dict[View, SiteMap]:
        """Return the sites by their names in each view; a torch model is exported into the folder."""
        return {"onnx": self.exported(folder).sites}

    @abstractmethod
    def runner(self, *, allow_mismatch: bool = False) -> Runner:
        """Return a runner of the unmodified model; with `allow_mismatch`, also for adapters of another fingerprint."""

    @property
    @abstractmethod
    def precision(self) -> PrecisionName:
        """Precision in which the model computes."""

    @abstractmethod
    def origin(self) -> Origin:
        """Return the tensors, the program and the libraries that determine an exported graph."""

    def with_probed_lengths(self, reporter: Reporter = SILENT) -> Base:  # noqa: ARG002
        """Return the base with lengths found by test runs, if its file does not state them."""
        return self

    @property
    def default_variants(self) -> tuple[VariantName, ...] | None:
        """Default graph variants of a bundle; `None` for all that the model allows."""
        return None

    @property
    def generation(self) -> GenerationRecord | None:
        """Settings for generating text; `None` for a base without caches, or with unknown settings."""
        return None

    @property
    def chat(self) -> CapturedChat | None:
        """Chat templates of a base that generates text; `None` without them."""
        return None

    @property
    def tokenizer_config(self) -> str | None:
        """Text of its `tokenizer_config.json`, if it generates text and has one."""
        return None

    @abstractmethod
    def companions(self, graph: str) -> Mapping[str, Path | bytes]:
        """Return files by name that onnxruntime-genai needs with a graph of this name; empty if it is not a decoder."""

    @property
    def weight_files(self) -> frozenset[Path]:
        """Weight files that the key of its record does not cover."""
        return frozenset()

    @property
    def config(self) -> Path | None:
        """`config.json` of a Hugging Face folder; `None` for other forms."""
        return None

    def live(self) -> Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]] | None:
        """Return a function that runs the model in its own library; `None` if only the capture is available.

        Raises:
            BaseModelError: the library cannot open the model.
        """
        return None

    def captured_as(self, manifest: Manifest) -> Base:  # noqa: ARG002
        """Return the base captured with the inputs and lengths in a bundle's manifest, if its form allows it."""
        return self

    def check_takes_head(self, adapter: Adapter) -> None:
        """Raise an `AdapterError` for an adapter whose head a merged base cannot store."""

    @abstractmethod
    def write_merged(self, merged: MergedWeights, path: Path) -> Base:
        """Write the base with new weights to a path and return it; `BaseModelError` if its form cannot store them."""


def open_tokenizer(folder: Path, manifest: Manifest, *, fix: str) -> Tokenizer:
    """Return the tokenizer of a bundle; `UsageError` with this fix if it has none."""
    if manifest.text is None:
        raise UsageError("the bundle has no tokenizer, so it cannot read texts", fix=fix)
    require("tokenizers", "text", "reading texts")
    from adapter_export.runtime.bundle import reader
    from adapter_export.text import read_tokenizer

    return reader(read_tokenizer(folder / manifest.text.tokenizer), manifest)
