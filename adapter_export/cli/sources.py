"""Opens a base, whichever of its forms a path leads to; what the form needs is imported only then."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import TYPE_CHECKING, Literal

from adapter_export.errors import BaseModelError, FileError, MissingExtraError, UsageError
from adapter_export.sites.site import SiteMap

if TYPE_CHECKING:
    from adapter_export.format.manifest import Manifest, Precision
    from adapter_export.numerics.runner import Runner
    from adapter_export.onnx_backend.base.base import OnnxBase
    from adapter_export.onnx_backend.base.genai import GenaiFolder
    from adapter_export.onnx_backend.base.numerics import Numerics
    from adapter_export.onnx_backend.quantise.rewrite import Deviation
    from adapter_export.sites.site_map import GivenSites
    from adapter_export.torch_backend.base.base import TorchBase


Form = Literal["archive", "folder", "onnx", "genai"]
"""A torch archive, a Hugging Face folder, an ONNX file, a folder of onnxruntime-genai."""

FORM_NAMES: dict[Form, str] = {
    "archive": "torch archive",
    "folder": "Hugging Face folder",
    "onnx": "ONNX graph",
    "genai": "onnxruntime-genai folder",
}
_GENAI_CONFIG = "genai_config.json"

_ZIP = b"PK"
_PICKLE = "a pickle, which could run code when it is read"
_NOT_MODELS = (
    (b"\x80\x02", _PICKLE),
    (b"\x80\x03", _PICKLE),
    (b"\x80\x04", _PICKLE),
    (b"\x80\x05", _PICKLE),
    (b"GGUF", "a GGUF file"),
    (b"\x89HDF", "an HDF5 file, as Keras writes it; `tf2onnx` converts Keras models"),
    (b"version https://git-lfs", "a Git LFS pointer, not the file that it points to"),
)
_FLATBUFFERS = {
    b"ORTM": "a model in ONNX Runtime's own format (`.ort`), which takes no slots; give the `.onnx` it was made of",
    b"TFL3": "a TensorFlow Lite model; `tf2onnx` converts it",
}
_SAFETENSORS_HEADER_AT = 8


@dataclass(frozen=True)
class TorchSource:
    """A base that torch can train and run.

    Attributes:
        path: where it is.
        form: what it is.
        base: the base.
        given: sites that override or complete those that are found.
    """

    path: Path
    form: Form
    base: TorchBase
    given: GivenSites | None = None

    @property
    def fingerprint(self) -> str:
        """Of the base's weights."""
        return self.base.fingerprint

    @property
    def tokenizer(self) -> str | None:
        """The text of its `tokenizer.json`, if it is known."""
        return self.base.tokenizer

    @property
    def max_tokens(self) -> int | None:
        """The most tokens that it takes, if that is known."""
        return self.base.max_tokens

    def sites(self) -> SiteMap:
        """Where adapters can act.

        Raises:
            NoSitesError: nowhere.
            UsageError: the given sites do not fit.
        """
        from adapter_export.sites.site_map import sites_of
        from adapter_export.torch_backend.view import flow_graph

        return sites_of(flow_graph(self.base.module()), "torch", self.given)


@dataclass(frozen=True)
class OnnxSource:
    """A base as an ONNX graph.

    Attributes:
        path: where it is.
        form: what it is.
        base: the base.
        given: sites that override or complete those that are found.
        genai: the folder of onnxruntime-genai that it lies in, where that was given.
    """

    path: Path
    form: Form
    base: OnnxBase
    given: GivenSites | None = None
    genai: GenaiFolder | None = None

    @property
    def fingerprint(self) -> str:
        """Of the base's weights."""
        return self.base.fingerprint

    @property
    def tokenizer(self) -> str | None:
        """The text of its `tokenizer.json`, if it is known."""
        return self.genai.tokenizer if self.genai else None

    @property
    def max_tokens(self) -> int | None:
        """The most tokens that it takes, if that is known."""
        return self.genai.max_tokens if self.genai else None

    def sites(self) -> SiteMap:
        """Where adapters can act."""
        return self.base.sites


Source = TorchSource | OnnxSource


def open_source(path: Path, *, trust_pickle: bool = False, site_map: Path | None = None) -> Source:
    """Open a base, with the sites of a site map if one is given.

    Raises:
        FileError: it is not there.
        BaseModelError: it is no base, or a damaged one.
        NoSitesError: an ONNX base in which no place for an adapter was found.
        MissingExtraError: what its form needs is not installed.
    """
    form, given = form_of(path), None if site_map is None else read_given(site_map)
    if form == "onnx":
        from adapter_export.cli.output import say
        from adapter_export.onnx_backend.base.base import open_onnx

        base = open_onnx(path, given=given)
        for note in base.notes:
            say(f"{path.name}: {note}")
        return OnnxSource(path, form, base, given)
    if form == "genai":
        from adapter_export.onnx_backend.base.genai import open_genai

        folder = open_genai(path, given=given)
        return OnnxSource(path, form, folder.base, given, folder)
    return TorchSource(path, form, _open_torch(path, form, trust_pickle), given)


def read_given(site_map: Path) -> GivenSites:
    """Read a site map.

    Raises:
        FileError, FormatError: as `format.site_map_json.read_site_map`.
    """
    from adapter_export.format.site_map_json import read_site_map

    return read_site_map(site_map)


def open_torch(path: Path, *, trust_pickle: bool = False) -> TorchBase:
    """Open a base that torch can train.

    Raises:
        BaseModelError: it is an ONNX graph, which has no gradients; or no base, or a damaged one.
        FileError, MissingExtraError: as `open_source`.
    """
    form = form_of(path)
    if form in ("onnx", "genai"):
        raise BaseModelError(
            f"is an {FORM_NAMES[form]}, which torch cannot train",
            where=path,
            expected="a torch archive (`.pt`, `.pt2`) or a Hugging Face folder",
            fix="give the model that the graph was exported from",
        )
    return _open_torch(path, form, trust_pickle)


def form_of(path: Path) -> Form:
    """What a path holds, by its contents, not by its name.

    Raises:
        FileError: nothing is there, or it cannot be read.
        BaseModelError: something else than a base.
    """
    if path.is_dir():
        return _form_of_folder(path)
    try:
        with path.open("rb") as file:
            start = file.read(32)
    except FileNotFoundError as error:
        raise FileError("is not there", where=path, expected="a model", fix="check the path") from error
    except OSError as error:
        raise FileError(f"cannot be read ({error.strerror})", where=path, fix="check its permissions") from error
    if start.startswith(_ZIP):
        return "archive"
    _refuse_others(path, start)
    return "onnx"


def _form_of_folder(path: Path) -> Form:
    others = {"manifest.json": "a bundle", "adapter_graph.json": "an adapter"}
    found = next((f"{name}: its `{file}` is there" for file, name in others.items() if (path / file).is_file()), None)
    if found is None and (path / _GENAI_CONFIG).is_file():  # the bundle of such a folder has that file, too
        return "genai"
    if (path / "config.json").is_file():
        return "folder"
    raise _not_a_base(path, found or f"a folder without `config.json` or `{_GENAI_CONFIG}`")


def _refuse_others(path: Path, start: bytes) -> None:
    """Say what a file is where that is plain; protobuf has no mark of its own, so the rest is tried as ONNX."""
    found = next((name for mark, name in _NOT_MODELS if start.startswith(mark)), None)
    found = _FLATBUFFERS.get(start[4:8], found)
    if start[_SAFETENSORS_HEADER_AT:].startswith(b"{"):
        found = "a safetensors file: weights without the model that they belong to"
    if not start:
        found = "an empty file"
    if found is not None:
        raise _not_a_base(path, found)


def _not_a_base(path: Path, found: str) -> BaseModelError:
    fix = "run `adapter-export capture HF_FOLDER -o model.pt`, or save a torch module with `save_base`"
    if found == _PICKLE:
        fix = (
            f"only if you trust whoever made it, run `adapter-export capture --trust-pickle {path} -o model.pt`, which "
            "runs its code once, and use `model.pt`, which holds none"
        )
    return BaseModelError(
        "is not a model that can be opened",
        where=path,
        found=found,
        expected="a torch archive (`.pt`, `.pt2`), a Hugging Face folder, an ONNX file or an onnxruntime-genai folder",
        fix=fix,
    )


def _open_torch(path: Path, form: Form, trust_pickle: bool) -> TorchBase:
    require("torch", "torch", "opening this model")
    if form == "folder":
        require("transformers", "hf", "opening a Hugging Face folder")
        from adapter_export.torch_backend.base.huggingface import open_folder

        return open_folder(path)
    from adapter_export.torch_backend.base.base import load_base

    return load_base(path, trust_pickle=trust_pickle)


def require(library: str, extra: str, needed_for: str) -> ModuleType:
    """Import a library that is an extra.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        return importlib.import_module(library)
    except ModuleNotFoundError as error:
        if error.name != library:
            raise
        raise MissingExtraError(library, extra=extra, needed_for=needed_for) from error


def read_tokenizer(path: Path) -> str:
    """The text of a `tokenizer.json`.

    Raises:
        FileError: it cannot be read as text.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise FileError(
            f"no tokenizer can be read ({error})",
            where=path,
            expected="a `tokenizer.json` of the tokenizers library",
            fix="save one with `tokenizer.save_pretrained(folder)`",
        ) from error


# The base that goes into a bundle, and what computes the outputs that it must have.

PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8", "int8-weights", "int4-weights")

Tell = Callable[[str], None]

_SEED, _TOKENS = 1, 7
"""Of the inputs that a treated base is compared with the plain one on."""


@dataclass(frozen=True)
class Treatment:
    """What is done to a base before the slots go in.

    Attributes:
        precision: the precision that it gets; `fp32` leaves it as it is.
        int8_embeddings: whether embeddings get 8 bits beside weights of 8 or 4.
        optimize: whether operators are fused.
    """

    precision: Precision = "fp32"
    int8_embeddings: bool = False
    optimize: bool = False

    def check(self) -> None:
        """Refuse what does not go together.

        Raises:
            UsageError: fused operators in another precision: their weights would stay in float32, and none but the
                fused graph itself could be the reference. Or 8-bit embeddings without quantised weights.
            MissingExtraError: onnxscript is not installed.
        """
        if self.optimize and self.precision != "fp32":
            raise UsageError(
                "`--optimize` and `--base-precision` do not go together",
                found=f"`--base-precision {self.precision}`",
                fix="leave one of them out; ONNX Runtime fuses what it can when it loads the graph",
            )
        if self.int8_embeddings and self.precision in ("fp32", "fp16"):
            raise UsageError(
                "`--int8-embeddings` goes with quantised weights",
                found=f"`--base-precision {self.precision}`",
                fix="give `--base-precision int8-weights` or `int4-weights` with it",
            )
        if self.optimize:
            require("onnxscript", "torch", "`--optimize`")


@contextmanager
def prepared(
    source: Source, treatment: Treatment, allow_mismatch: bool, tell: Tell
) -> Iterator[tuple[OnnxBase, Runner]]:
    """The base as it goes into a bundle, and what computes its golden vectors.

    That is the model itself, or the treated base cut open at its sites where the precision is another: the model in
    float32 says nothing about rounding in 8 bits.
    """
    with TemporaryDirectory(prefix="adapter-export-") as folder:
        plain = as_onnx(source, Path(folder), tell)
        if treatment.optimize:
            yield _optimized(plain, Path(folder), tell), runner_of(source, allow_mismatch)
        elif treatment.precision != "fp32":
            made = _in_precision(plain, treatment, Path(folder), tell)
            _tell_deviation(plain, made, tell)
            yield made, _cut_runner(made)
        else:
            yield plain, runner_of(source, allow_mismatch)


@contextmanager
def same_precision(source: Source, wanted: Numerics) -> Iterator[Runner]:
    """The reference for a bundle: a model, in the precision that the bundle has."""
    if precision_of(source) == wanted.precision:
        yield runner_of(source, allow_mismatch=True)
        return
    with TemporaryDirectory(prefix="adapter-export-") as folder:
        plain = as_onnx(source, Path(folder), lambda _: None)
        embeddings = wanted.int8_tables and wanted.precision != "int8"
        treatment = Treatment(wanted.precision, int8_embeddings=embeddings)
        yield _cut_runner(_in_precision(plain, treatment, Path(folder), lambda _: None))


def model_of(manifest: Manifest, path: Path, *, trust_pickle: bool, site_map: Path | None) -> Source:
    """Open the model that a bundle was built from.

    Raises:
        BaseModelError: it is another one.
        InputError: it cannot be opened.
    """
    source = open_source(path, trust_pickle=trust_pickle, site_map=site_map)
    if source.fingerprint != manifest.base:
        raise BaseModelError(
            "is another base than the bundle's",
            where=path,
            found=f"base fingerprint {source.fingerprint}",
            expected=manifest.base,
            fix="give the model that the bundle was built from",
        )
    return source


def precision_of(source: Source) -> Precision:
    """The precision that a base has of itself; a torch base is run in float32."""
    if not isinstance(source, OnnxSource):
        return "fp32"
    from adapter_export.onnx_backend.base.numerics import numerics

    return numerics(source.base.model).precision


def runner_of(source: Source, allow_mismatch: bool) -> Runner:
    """Runs a base as it is, in torch where there is a torch model."""
    if isinstance(source, OnnxSource):
        return _cut_runner(source.base)
    from adapter_export.torch_backend.runner import TorchRunner

    return TorchRunner(source.base, sites=source.sites(), allow_mismatch=allow_mismatch)


def _cut_runner(base: OnnxBase) -> Runner:
    from adapter_export.onnx_backend.runner import CutRunner

    return CutRunner(base)


def as_onnx(source: Source, folder: Path, tell: Tell) -> OnnxBase:
    """The base as an ONNX graph, exported into a folder if it is none, with its site map if it has one."""
    if isinstance(source, OnnxSource):
        return source.base
    from adapter_export.onnx_backend.base.base import open_onnx
    from adapter_export.torch_backend.base.to_onnx import export_onnx

    tell("exporting the base to ONNX")
    path = folder / "exported" / "base.onnx"
    path.parent.mkdir()
    export_onnx(source.base, path)
    return open_onnx(path, given=source.given)


def _in_precision(plain: OnnxBase, treatment: Treatment, folder: Path, tell: Tell) -> OnnxBase:
    from adapter_export.onnx_backend.quantise.precision import with_precision

    tell(f"bringing the base into {treatment.precision}")
    out = folder / "precision"
    out.mkdir()
    return with_precision(plain, treatment.precision, out, int8_embeddings=treatment.int8_embeddings)


def _optimized(plain: OnnxBase, folder: Path, tell: Tell) -> OnnxBase:
    from adapter_export.onnx_backend.quantise.optimize import check_deviation, optimized

    tell("fusing operators of the base")
    out = folder / "optimized"
    out.mkdir()
    made, fusions = optimized(plain, out)
    tell("fused " + (", ".join(f"{count} {name}" for name, count in fusions.items()) or "nothing"))
    for found in _tell_deviation(plain, made, tell):
        check_deviation(found)
    return made


def _tell_deviation(plain: OnnxBase, made: OnnxBase, tell: Tell) -> list[Deviation]:
    """Say how far the treated base lies from the plain one."""
    from adapter_export.numerics.sample_inputs import input_cases
    from adapter_export.onnx_backend.quantise.rewrite import deviations

    found = deviations(plain, made, input_cases(plain.inputs, seed=_SEED, max_tokens=_TOKENS))
    for each in found:
        tell(f"`{each.output}` deviates from the plain base by {each.absolute:.1e} of {each.scale:.3g}")
    return found
