"""Four forms of a base: torch archives, Hugging Face folders, ONNX files and onnxruntime-genai folders."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from adapter_export.bases.base import Base, MergedWeights
from adapter_export.bases.detect import Form
from adapter_export.errors import AdapterError, InputError, UsageError
from adapter_export.extras import require
from adapter_export.reporting import SILENT, Reporter
from adapter_export.words import argument

if TYPE_CHECKING:
    import numpy as np

    from adapter_export.bases.base_view import ArchitectureHead
    from adapter_export.bundle.proof.exact_tensors import Origin
    from adapter_export.format.generation import CapturedChat, GenerationRecord
    from adapter_export.format.lengths import Bounds
    from adapter_export.format.manifest import InputRecord, Manifest, VariantName
    from adapter_export.format.precision import PrecisionName
    from adapter_export.graph.adapter import Adapter
    from adapter_export.numerics.runner import Runner
    from adapter_export.onnx_backend.base.genai import GenaiFolder
    from adapter_export.onnx_backend.base.onnx_base import OnnxBase
    from adapter_export.sites.site import SiteMap
    from adapter_export.sites.site_map import View
    from adapter_export.torch_backend.base.torch_base import TorchBase


@dataclass(frozen=True, repr=False)
class ArchiveBase(Base):
    """A torch archive, or a module captured in memory (`loaded`)."""

    loaded: TorchBase | None = field(default=None, repr=False)

    form: ClassVar[Form] = "archive"
    trainable: ClassVar[bool] = True

    @cached_property
    def model(self) -> TorchBase:
        """The model for running and training in torch."""
        return self.loaded if self.loaded is not None else self._opened(self._load)

    def _load(self, path: Path) -> TorchBase:
        require("torch", "torch", "opening this model")
        from adapter_export.torch_backend.base.torch_base import load_base

        return load_base(path, trust_pickle=self.options.trust_pickle)

    @property
    def torch(self) -> TorchBase:
        """The model for training in torch."""
        return self.model

    @property
    def is_open(self) -> bool:
        """True once the model is open, or if it was captured in memory."""
        return self.loaded is not None or super().is_open

    @property
    def reads(self) -> str | None:
        """Modality of the processor in the archive, `text` without one; `None` if the file is not an archive."""
        if self.path is None:
            return None
        from adapter_export.format.media import archived_medium

        try:
            return archived_medium(self.path) or "text"
        except InputError:  # opening it reports the error
            return None

    def _site_map(self) -> SiteMap:
        from adapter_export.sites.site_map import sites_of

        return sites_of(self.flow, "torch", self.given)

    def exported(self, folder: Path, reporter: Reporter = SILENT) -> OnnxBase:
        """Export the program to ONNX in a folder, and open the graph."""
        from adapter_export.onnx_backend.base.onnx_base import open_onnx
        from adapter_export.torch_backend.base.to_onnx import export_onnx

        reporter.step("exporting the base to ONNX")
        path = folder / "exported" / "base.onnx"
        path.parent.mkdir()
        export_onnx(self.model, path)
        return open_onnx(path, given_sites=self.given)

    def checked_export(self, folder: Path, reporter: Reporter = SILENT) -> OnnxBase:
        """Return the exported graph, after comparing its sites with those of the program by value."""
        from adapter_export.bundle.views import check_same_sites
        from adapter_export.torch_backend.torch_runner import node_values

        graph = super().checked_export(folder, reporter)
        check_same_sites(self.sites.map, graph, partial(node_values, self.model), self.max_tokens)
        return graph

    def site_maps(self, folder: Path) -> dict[View, SiteMap]:
        """Return the sites by their names in the exported graph and in the program."""
        return {**super().site_maps(folder), "torch": self.sites.map}

    def runner(self, *, allow_mismatch: bool = False) -> Runner:
        """Return a runner that computes in torch."""
        from adapter_export.torch_backend.torch_runner import TorchRunner

        return TorchRunner(self.model, sites=self.sites.map, allow_mismatch=allow_mismatch)

    def architecture_head(
        self, endings: Sequence[str], name: str | None, shapes: Mapping[str, tuple[int, ...]]
    ) -> ArchitectureHead | None:
        """Return the head of the class in transformers that the recorded configuration determines."""
        if self.model.config is None:
            return None
        require("transformers", "hf", "importing a prediction head")
        from adapter_export.torch_backend.architecture_head import architecture_head

        return architecture_head(self.model, endings, name, shapes, self._weights_folder)

    @property
    def _weights_folder(self) -> Path | None:
        """Folder whose weights transformers can load; `None` for an archive."""
        return None

    @property
    def precision(self) -> PrecisionName:
        """Precision of the program, float32."""
        return "fp32"

    def origin(self) -> Origin:
        """Return the tensors and a digest of the program, and the libraries that export it."""
        from adapter_export.bundle.proof.exact_tensors import Origin
        from adapter_export.torch_backend.base.torch_base import tensors

        program = self.model.program
        digest = hashlib.sha256(str(program.graph).encode()).hexdigest()
        return Origin(tensors(program), digest, ("torch", "onnxscript"))

    @property
    def generation(self) -> GenerationRecord | None:
        """Settings for generating text, from the folder's configuration; `None` without caches or settings."""
        from adapter_export.format.model_config import Generation

        said = self.model.generation
        return said.record() if _has_cache(self.inputs) and said != Generation() else None

    @property
    def chat(self) -> CapturedChat | None:
        """Chat templates of the folder, with the prompts of transformers."""
        return self.model.chat if _has_cache(self.inputs) else None

    @property
    def tokenizer_config(self) -> str | None:
        """Text of the folder's `tokenizer_config.json`."""
        return self.model.generation.tokenizer_config

    def companions(self, graph: str) -> Mapping[str, Path | bytes]:
        """Return the configuration with which onnxruntime-genai runs a captured decoder."""
        from adapter_export.onnx_backend.base.genai import generating_files

        return generating_files(self.inputs, self.outputs, self.model.generation, self.max_tokens, graph)

    def write_merged(self, merged: MergedWeights, path: Path) -> ArchiveBase:
        """Write an archive with the new weights, and a note about the merge."""
        from adapter_export.torch_backend.base.derive import with_merged_weights
        from adapter_export.torch_backend.base.torch_base import write_base

        made = with_merged_weights(self.model, merged.tensors, merged.head, merged.record)
        write_base(made, path, force=True)
        return ArchiveBase(path, self.options, loaded=made)


@dataclass(frozen=True, repr=False)
class FolderBase(ArchiveBase):
    """A Hugging Face or sentence-transformers folder; it is captured when it is opened."""

    form: ClassVar[Form] = "folder"

    @property
    def reads(self) -> str | None:
        """`text` for a folder without a processor; `None` otherwise, because transformers determines the modality."""
        from adapter_export.format.media import PROCESSOR_FILE

        return None if self.path is None or (self.path / PROCESSOR_FILE).is_file() else "text"

    def _load(self, path: Path) -> TorchBase:
        for library in ("torch", "transformers"):
            require(library, "hf", "opening a Hugging Face folder")
        from adapter_export.torch_backend.base.huggingface_folder import open_folder

        return open_folder(path)

    @property
    def config(self) -> Path | None:
        """Its `config.json`."""
        return None if self.path is None else self.path / "config.json"

    @property
    def _weights_folder(self) -> Path | None:
        """The folder, or that of the model in a sentence-transformers folder."""
        from adapter_export.torch_backend.base.sentences.sentence_folder import read_sentence_folder

        sentences = None if self.path is None else read_sentence_folder(self.path)
        return self.path if sentences is None else sentences.model

    def live(self) -> Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]] | None:
        """Return a function that runs the model in transformers."""
        from adapter_export.torch_backend.base.huggingface_folder import live_folder

        return None if self.path is None else live_folder(self.path, self.model)

    def captured_as(self, manifest: Manifest) -> Base:
        """Return the folder captured as in the manifest, with or without cache, if that is the bundle's base."""
        from adapter_export.format.axes import axis_names
        from adapter_export.torch_backend.base.huggingface_folder import open_folder

        if self.path is None:
            return self
        named = axis_names(manifest.inputs)
        lengths = {axis: own for axis, own in manifest.lengths.items() if axis in named}
        bare = not _has_cache(manifest.inputs)
        if self.fingerprint != manifest.base and bare != _has_cache(self.inputs):
            return self  # another model: capturing it again would not change that
        inputs = manifest.inputs if bare else ()
        try:
            again = replace(self, loaded=open_folder(self.path, inputs=inputs, bare=bare, lengths=lengths))
        except (InputError, UsageError):  # the base does not accept them; `check` reports it
            return self
        return again if again.fingerprint == manifest.base else self


def _has_cache(inputs: Sequence[InputRecord]) -> bool:
    return any(record.role == "cache" for record in inputs)


@dataclass(frozen=True, repr=False)
class OnnxFileBase(Base):
    """An ONNX graph, which has no gradients."""

    loaded: OnnxBase | None = field(default=None, repr=False)

    form: ClassVar[Form] = "onnx"
    trainable: ClassVar[bool] = False

    @cached_property
    def model(self) -> OnnxBase:
        """The graph, with its large weights on disk."""
        return self.loaded if self.loaded is not None else self._opened(self._load)

    def _load(self, path: Path) -> OnnxBase:
        from adapter_export.onnx_backend.base.onnx_base import open_onnx
        from adapter_export.onnx_backend.base.sandbox import try_graph

        try_graph(path, self.options.site_map)
        return open_onnx(path, given_sites=self.given)

    @property
    def torch(self) -> TorchBase:
        """Raise a `BaseModelError`: torch cannot train a graph."""
        self.check_trainable()
        raise AssertionError("a graph is not trainable")

    def _site_map(self) -> SiteMap:
        return self.model.sites

    def exported(self, folder: Path, reporter: Reporter = SILENT) -> OnnxBase:  # noqa: ARG002
        """Return the unmodified graph."""
        return self.model

    def runner(self, *, allow_mismatch: bool = False) -> Runner:  # noqa: ARG002
        """Return a runner that splits the graph at its sites and computes adapters in float64."""
        from adapter_export.onnx_backend.onnx_runner import CutRunner

        return CutRunner(self.model)

    @property
    def precision(self) -> PrecisionName:
        """Precision of the products in the graph; the coarsest if there are several."""
        from adapter_export.onnx_backend.base.onnx_base import numerics

        return numerics(self.model.model).precision.name

    def origin(self) -> Origin:
        """Return the constants of the file on disk."""
        from adapter_export.bundle.proof.exact_tensors import Origin

        return Origin.of(self.model)

    def with_probed_lengths(self, reporter: Reporter = SILENT) -> OnnxFileBase:
        """Return the base with lengths found by test runs; large graphs are not run."""
        from adapter_export.onnx_backend.base.external import is_large
        from adapter_export.onnx_backend.base.onnx_base import probe_lengths

        if self.lengths or is_large(self.model.model):
            return self
        reporter.step("searching for the shortest and longest input of the graph")
        probed = probe_lengths(self.model)
        for axis, lengths in probed.lengths.items():
            reporter.step(f"length of axis `{axis}`: {lengths}, found by test runs")
        return replace(self, loaded=probed)

    def captured_as(self, manifest: Manifest) -> OnnxFileBase:  # noqa: ARG002
        """Return the base with lengths found by test runs, as `build` did."""
        return self.with_probed_lengths()

    def companions(self, graph: str) -> Mapping[str, Path | bytes]:  # noqa: ARG002
        """Return no files."""
        return {}

    @property
    def weight_files(self) -> frozenset[Path]:
        """External data of the graph."""
        from adapter_export.onnx_backend.base.external import external_files

        return frozenset(external_files(self.model.model, self.model.folder))

    def check_takes_head(self, adapter: Adapter) -> None:
        """Raise an `AdapterError` for a head: a graph cannot store it."""
        if adapter.head is not None:
            raise AdapterError(
                "has a head, which an ONNX base cannot store",
                where=f"adapter `{adapter.name}`",
                fix="merge without it (" + argument("without_head", True) + "), or merge into the torch archive",
            )

    def write_merged(self, merged: MergedWeights, path: Path) -> OnnxFileBase:
        """Write the graph with the new weights as one file; `BaseModelError` if it is too large."""
        from adapter_export.onnx_backend.base.merged_graph import write_merged
        from adapter_export.onnx_backend.base.onnx_base import open_onnx

        write_merged(self.model, merged.tensors, merged.record, path)
        return OnnxFileBase(path, self.options, loaded=open_onnx(path, given_sites=self.given))


@dataclass(frozen=True, repr=False)
class GenaiBase(OnnxFileBase):
    """A folder of onnxruntime-genai: the graph of a decoder, and its files for generation."""

    form: ClassVar[Form] = "genai"

    @cached_property
    def folder(self) -> GenaiFolder:
        """Configuration and files beside the graph."""
        from adapter_export.onnx_backend.base.genai import read_genai

        assert self.path is not None  # a folder always has a path
        return read_genai(self.path)

    def _load(self, path: Path) -> OnnxBase:  # noqa: ARG002
        identity = self.folder.identity
        return self.unidentified if identity is None else identity.applied(self.unidentified)

    @cached_property
    def unidentified(self) -> OnnxBase:
        """The graph without facts of the trained model found by `identify`."""
        return super()._load(self.folder.graph)

    @property
    def model_type(self) -> str | None:
        """Name of the architecture in transformers, if the folder was matched to the trained model."""
        return None if self.folder.identity is None else self.folder.identity.model_type

    @property
    def _tokenizer(self) -> str | None:
        return self.folder.tokenizer

    @property
    def chat(self) -> CapturedChat | None:
        """Chat templates of the folder."""
        from adapter_export.bases.chat_files import captured_templates, folder_templates

        templates = None if self.path is None else folder_templates(self.path)
        return None if templates is None else captured_templates(templates, self._tokenizer, self.max_tokens)

    @property
    def tokenizer_config(self) -> str | None:
        """Text of the folder's `tokenizer_config.json`."""
        from adapter_export.bases.chat_files import tokenizer_config_of

        return None if self.path is None else tokenizer_config_of(self.path)

    @property
    def lengths(self) -> Bounds:
        """Lengths of the dynamic axes, limited to the configuration's maximum number of tokens."""
        from adapter_export.format.axes import narrowed

        return narrowed(self.inputs, super().lengths, self.folder.max_tokens) or super().lengths

    @property
    def default_variants(self) -> tuple[VariantName, ...]:
        """Slots only: onnxruntime-genai loads one graph."""
        return ("slots",)

    def companions(self, graph: str) -> Mapping[str, Path | bytes]:
        """Return the folder's files, with the bundle's graph named in the configuration."""
        return self.folder.companions(self.model, graph)

    @property
    def weight_files(self) -> frozenset[Path]:
        """No files: the key of a folder's record covers every file in it."""
        return frozenset()
