"""Open a base, whichever of its forms a path leads to, or capture one."""

from __future__ import annotations

import importlib
import os
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias, cast

from adapter_export.api.models.sites import Sites
from adapter_export.errors import (
    BaseModelError,
    FileError,
    MissingExtraError,
    NoSitesError,
    Note,
    UsageError,
    argument,
    command,
    worded,
)
from adapter_export.format.lengths import Fit, parse_lengths
from adapter_export.option import Option
from adapter_export.safe_io.output import Output
from adapter_export.safe_io.regular_files import open_regular

if TYPE_CHECKING:
    import numpy as np
    from torch.nn import Module

    from adapter_export.format.base_record import BaseRecord
    from adapter_export.format.golden_texts import GoldenTexts
    from adapter_export.format.lengths import Bounds, Lengths
    from adapter_export.format.manifest import InputRecord, Manifest, OutputRecord
    from adapter_export.format.media import CapturedMedia
    from adapter_export.graph.adapter import Adapter
    from adapter_export.onnx_backend.base.genai import GenaiFolder
    from adapter_export.onnx_backend.base.onnx_base import OnnxBase
    from adapter_export.sites.site_map import GivenSites
    from adapter_export.sites.view import FlowGraph
    from adapter_export.text import Tokenizer
    from adapter_export.torch_backend.base.capture_module import AxisNames, Inputs
    from adapter_export.torch_backend.base.torch_base import TorchBase

    Opened: TypeAlias = TorchBase | OnnxBase | GenaiFolder

PathLike = Path | str

OnNote = Callable[[Note], None]
"""Is told what the caller should know; without one it is a warning."""

Form = Literal["archive", "folder", "onnx", "genai"]
"""A torch archive, a Hugging Face folder, an ONNX file, a folder of onnxruntime-genai."""

FORM_NAMES: dict[Form, str] = {
    "archive": "torch archive",
    "folder": "Hugging Face folder",
    "onnx": "ONNX graph",
    "genai": "onnxruntime-genai folder",
}

_FORMS = "a torch archive (`.pt`, `.pt2`), a Hugging Face folder, an ONNX file or an onnxruntime-genai folder"
_GENAI_CONFIG = "genai_config.json"
_PICKLE = "a pickle, which could run code when it is read"
_NOT_MODELS = {
    **dict.fromkeys((b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"), _PICKLE),
    b"GGUF": "a GGUF file",
    b"\x89HDF": "an HDF5 file, as Keras writes it; `tf2onnx` converts Keras models",
    b"version https://git-lfs": "a Git LFS pointer, not the file that it points to",
}
_ONNX_STARTS = b"\x08\x12\x1a\x22\x28\x32\x3a\x42\x72"
"""The tags of fields 1 to 8 and 14 of `ModelProto`: a file begins with its first field, as a rule `ir_version`."""
_FLATBUFFERS = {
    b"ORTM": "a model in ONNX Runtime's own format (`.ort`), which takes no slots; give the `.onnx` it was made of",
    b"TFL3": "a TensorFlow Lite model; `tf2onnx` converts it",
}


@dataclass(frozen=True)
class Recorded:
    """A base that need not be opened for what its record says; `open` opens it."""

    record: BaseRecord
    open: Callable[[], Opened]


@dataclass(frozen=True)
class Base:
    """A frozen pretrained model; `open_base` and `capture` give one.

    Attributes:
        path: where it is; none for a module that was captured in memory.
        form: what it is.
        source: the model in its backend: a `TorchBase`, which trains and runs, an `OnnxBase` or a `GenaiFolder`; or its
            record, where that is enough.
        given: sites that override or complete those that are found.
    """

    path: Path | None
    form: Form
    source: Opened | Recorded
    given: GivenSites | None = None

    @cached_property
    def _opened(self) -> Opened:
        return self.source.open() if isinstance(self.source, Recorded) else self.source

    @property
    def _known(self) -> TorchBase | OnnxBase | BaseRecord:
        return self.source.record if isinstance(self.source, Recorded) else self.model

    @property
    def genai(self) -> GenaiFolder | None:
        """The folder of onnxruntime-genai that the graph lies in, where that was given."""
        return cast("GenaiFolder", self._opened) if self.form == "genai" else None

    @property
    def model(self) -> TorchBase | OnnxBase:
        """The model in its backend: a `TorchBase`, which trains and runs, or an `OnnxBase`."""
        return self.genai.base if self.genai else cast("TorchBase | OnnxBase", self._opened)

    @property
    def is_onnx(self) -> bool:
        """Whether it is an ONNX graph, which has no gradients."""
        return self.form in ("onnx", "genai")

    @property
    def torch(self) -> TorchBase:
        """The model as torch trains it; an ONNX graph is a `BaseModelError`."""
        check_trainable(self.path, self.form)
        return cast("TorchBase", self.model)

    @property
    def onnx(self) -> OnnxBase:
        """The graph of a base for which `is_onnx` holds."""
        assert self.is_onnx
        return cast("OnnxBase", self.model)

    @property
    def fingerprint(self) -> str:
        """The sha256 of its weights, `sha256:<hex>`."""
        return self._known.fingerprint

    @property
    def inputs(self) -> tuple[InputRecord, ...]:
        """What it takes."""
        return self._known.inputs

    @property
    def outputs(self) -> tuple[OutputRecord, ...]:
        """What it returns."""
        return self._known.outputs

    @property
    def tokenizer(self) -> str | None:
        """The text of its `tokenizer.json`, if it is known; `BaseModelError` if that ends the process that tries it."""
        text = (self.genai.tokenizer if self.genai else None) if self.is_onnx else self.torch.tokenizer
        if text is not None:
            from adapter_export.text import try_tokenizer

            try_tokenizer(text)
        return text

    @property
    def parameters(self) -> int:
        """How many numbers its weights are, tensors of floats that are stored."""
        if not self.is_onnx:
            return sum(tensor.numel() for tensor in self.torch.program.parameters())
        tensors = (value.const_value for value in self.onnx.model.graph.initializers.values())
        return sum(tensor.size for tensor in tensors if tensor is not None and tensor.dtype.is_floating_point())

    def tensor(self, name: str) -> np.ndarray | None:
        """Return a tensor of floats by its name in the torch model, float32 of an archive; none where there is none.

        A matrix of an ONNX graph is as torch's `Linear` holds it, [out, in].
        """
        if self.is_onnx:
            return self.onnx.tensor(name)
        found = self.torch.program.state_dict.get(name)
        return None if found is None or not found.is_floating_point() else found.detach().float().numpy()

    @property
    def texts(self) -> GoldenTexts | None:
        """The ids that the model's own library makes of golden texts, if they are known."""
        return None if self.is_onnx else self.torch.texts

    @property
    def media(self) -> CapturedMedia | None:
        """What the model's own processor does with images or audio, if that is known."""
        return None if self.is_onnx else self.torch.media

    @property
    def lengths(self) -> Bounds:
        """The lengths that its dynamic axes may have; one that is not here may have any."""
        if self.genai is None:
            return self.model.lengths
        from adapter_export.format.axes import narrowed

        return narrowed(self.inputs, self.model.lengths, self.genai.max_tokens) or self.model.lengths

    @property
    def max_tokens(self) -> int | None:
        """The most tokens that it takes, if that is known."""
        from adapter_export.format.manifest import token_lengths

        return token_lengths(self.inputs, self.lengths).maximum

    @property
    def fit(self) -> Fit | None:
        """The number of tokens to which a text is filled up; none for a base that takes every length."""
        from adapter_export.format.manifest import token_lengths

        tokens = token_lengths(self.inputs, self.lengths)
        return None if tokens.unbroken else Fit(tokens, self.model.pads)

    @property
    def base_head(self) -> Adapter | None:
        """The head that the model had before it was a base, as an adapter that acts at no site.

        None if it had none, if it was left out (`notes` say why), or if a site map gives another final hidden state.
        """
        if self.is_onnx or (self.given is not None and self.given.final):
            return None
        return self.torch.base_head

    def base_head_facts(self) -> dict[str, Any] | None:
        """Return what there is to know of its base head as JSON data: `task`, `parameters`; none without one."""
        if isinstance(self.source, Recorded):
            return None if self.source.record.base_head is None else dict(self.source.record.base_head)
        own = self.base_head
        if own is None or own.head is None:
            return None
        task = own.head.task
        return {"task": None if task is None else task.document(), "parameters": own.cost().parameters}

    @property
    def notes(self) -> tuple[str, ...]:
        """What was done to the model when it was opened, or captured."""
        return self._known.notes

    @property
    def model_type(self) -> str | None:
        """The name of its architecture in transformers, such as `bert`, if it is known."""
        known = self._known
        return None if self.is_onnx else cast("TorchBase | BaseRecord", known).model_type

    def kept(self, graph: str) -> Mapping[str, Path | bytes]:
        """Return the files that onnxruntime-genai needs beside a bundle's graph, by name; none if it is no decoder."""
        if self.genai is not None:
            return self.genai.kept(graph)
        if self.is_onnx:
            return {}
        from adapter_export.onnx_backend.base.genai import generating_files

        return generating_files(self.inputs, self.outputs, self.torch.generation, self.max_tokens, graph)

    @cached_property
    def sites(self) -> Sites:
        """Where adapters can act.

        Raises:
            NoSitesError: nowhere.
            UsageError: the given sites do not fit.
        """
        if isinstance(self.source, Recorded):
            return Sites(self.source.record.sites, self, self.source.record.not_placed)
        if self.is_onnx:
            return Sites(self.onnx.sites, self)
        from adapter_export.sites.site_map import sites_of

        return Sites(sites_of(self.flow, "torch", self.given), self)

    @cached_property
    def flow(self) -> FlowGraph:
        """The graph in which sites are found."""
        if self.is_onnx:
            return self.onnx.flow
        return self.torch.flow

    def exported(self, folder: Path, on_progress: Callable[[str], None] | None = None) -> OnnxBase:
        """Return the base as an ONNX graph, exported into a folder if it is none."""
        if self.is_onnx:
            return self.onnx
        from adapter_export.onnx_backend.base.onnx_base import open_onnx
        from adapter_export.torch_backend.base.to_onnx import export_onnx

        if on_progress is not None:
            on_progress("exporting the base to ONNX")
        path = folder / "exported" / "base.onnx"
        path.parent.mkdir()
        export_onnx(self.torch, path)
        return open_onnx(path, given=self.given)


def open_base(model: PathLike | Base, *, site_map: PathLike | None = None, trust_pickle: bool = False) -> Base:
    """Open a base.

    Args:
        model: a torch archive, a Hugging Face folder, an ONNX file or a folder of onnxruntime-genai; what it is, is
            seen from its contents. A base is returned as it is.
        site_map: a file with sites that override or complete those that are found.
        trust_pickle: load an archive that could run code; only one that you made yourself.

    Raises:
        FileError: it is not there.
        BaseModelError: it is no base, or a damaged one.
        NoSitesError: an ONNX base in which no place for an adapter was found.
        MissingExtraError: what its form needs is not installed.
    """
    if isinstance(model, Base):
        if site_map is not None:
            raise UsageError(f"{argument('site_map')} is for a base that is opened", fix="give it to `open_base`")
        return model
    path = Path(model)
    form, given = form_of(path), _given(site_map)
    return Base(path, form, _open(path, form, given, site_map, trust_pickle), given)


def recorded_base(model: PathLike | Base, *, site_map: PathLike | None = None, trust_pickle: bool = False) -> Base:
    """Return a base that is opened only when more is asked of it than its record says; the first call writes that.

    Arguments and errors are those of `open_base`. An archive that could run code has no record.
    """
    if isinstance(model, Base) or trust_pickle:
        return open_base(model, site_map=site_map, trust_pickle=trust_pickle)
    from adapter_export.format.base_record import find_record, record_key

    path, file = Path(model), None if site_map is None else Path(site_map)
    form, given = form_of(path), _given(site_map)
    key = record_key(path, file)
    record = None if key is None else find_record(key, path)
    if record is None:
        base = open_base(path, site_map=site_map)
        if key is not None:
            _keep_record(base, key, file)
        return base

    def reopened() -> Opened:
        opened = _open(path, form, given, site_map, trust_pickle=False)
        if record_key(path, file) != key:
            raise BaseModelError("was changed while it was in use", where=path, fix="run again")
        return opened

    return Base(path, form, Recorded(record, reopened), given)


def _keep_record(base: Base, key: str, site_map: Path | None) -> None:
    """Write the record of a base that was opened from its path, unless what lies there is no longer what it was."""
    from adapter_export.format.base_record import BaseRecord, keep_record, record_key
    from adapter_export.safe_io.regular_files import sha256_of

    path, weights = cast("Path", base.path), set[Path]()
    if base.form == "onnx":
        from adapter_export.onnx_backend.base.external import external_files

        weights = external_files(base.onnx.model, base.onnx.folder)
    if not all(file.is_relative_to(path.resolve().parent) for file in weights):
        return
    record = BaseRecord(
        base.fingerprint,
        base.inputs,
        base.outputs,
        base.sites.map,
        base.sites.not_placed,
        tuple(map(str, base.notes)),
        base.model_type,
        base.base_head_facts(),
        {file.relative_to(path.resolve().parent).as_posix(): sha256_of(file) for file in weights},
    )
    if record_key(path, site_map) == key:
        keep_record(key, record)


def _given(site_map: PathLike | None) -> GivenSites | None:
    if site_map is None:
        return None
    from adapter_export.format.site_map_json import read_site_map

    return read_site_map(Path(site_map))


def _open(path: Path, form: Form, given: GivenSites | None, site_map: PathLike | None, trust_pickle: bool) -> Opened:
    """Return the model of a path in its backend."""
    if form == "onnx":
        from adapter_export.onnx_backend.base.onnx_base import open_onnx
        from adapter_export.onnx_backend.base.sandbox import try_graph

        try_graph(path, site_map)
        return open_onnx(path, given=given)
    if form == "genai":
        from adapter_export.onnx_backend.base.genai import decoder_of, open_genai
        from adapter_export.onnx_backend.base.sandbox import try_graph

        try_graph(decoder_of(path)[1], site_map)
        return open_genai(path, given=given)
    require("torch", "torch", "opening this model")
    if form == "folder":
        require("transformers", "hf", "opening a Hugging Face folder")
        from adapter_export.torch_backend.base.huggingface_folder import open_folder

        return open_folder(path)
    from adapter_export.torch_backend.base.torch_base import load_base

    return load_base(path, trust_pickle=trust_pickle)


def check_trainable(path: Path | None, form: Form) -> None:
    """Refuse a base that torch cannot train: an ONNX graph."""
    if form in ("onnx", "genai"):
        raise BaseModelError(
            f"is an {FORM_NAMES[form]}, which torch cannot train",
            where=path,
            expected="a torch archive (`.pt`, `.pt2`) or a Hugging Face folder",
            fix="give the model that the graph was exported from",
        )


def form_of(path: Path) -> Form:
    """Return what a path holds, by its contents, not by its name; what is no base is a `BaseModelError`."""
    if path.is_dir():
        others = {"manifest.json": "a bundle", "adapter_graph.json": "an adapter"}
        found = next((f"{name}: its `{file}` is there" for file, name in others.items() if (path / file).is_file()), "")
        if not found and (path / _GENAI_CONFIG).is_file():  # the bundle of such a folder has that file, too
            return "genai"
        if any((path / name).is_file() for name in ("config.json", "modules.json")):
            return "folder"
        raise _not_a_base(path, found or f"a folder without `config.json` or `{_GENAI_CONFIG}`")
    if not path.exists():
        raise FileError("is not there", where=path, expected=_FORMS, fix="check the path for a typing error")
    with open_regular(path) as file:
        start = file.read(32)
    if start.startswith(b"PK"):
        return "archive"
    # protobuf has no mark of its own: what is nothing else, and begins as a model can, is tried as ONNX
    text = start.isascii() and all(one.isprintable() or one in "\t\r\n" for one in start.decode("ascii"))
    other = (
        "a text" if text else None if start[:1] in _ONNX_STARTS else f"a file that begins with `{start[:8].hex(' ')}`"
    )
    other = next((name for mark, name in _NOT_MODELS.items() if start.startswith(mark)), other)
    other = _FLATBUFFERS.get(start[4:8], other)
    if start[8:].startswith(b"{"):
        other = "a safetensors file: weights without the model that they belong to"
    if not start:
        other = "an empty file"
    if other is not None:
        raise _not_a_base(path, other)
    return "onnx"


def _not_a_base(path: Path, found: str) -> BaseModelError:
    capture_it = command('capture(HF_FOLDER, "model.pt")', "capture HF_FOLDER -o model.pt")
    fix = f"run {capture_it}, or save a torch module with `ae.capture`"
    if found == _PICKLE:
        call = f'capture({str(path)!r}, "model.pt", trust_pickle=True)'
        trust = command(call, f"capture --trust-pickle {path} -o model.pt")
        once = f"run {trust}, which runs its code once, and use `model.pt`, which holds none"
        fix = f"only if you trust whoever made it, {once}"
    return BaseModelError(
        "is not a model that can be opened",
        where=path,
        found=found,
        expected=_FORMS,
        fix=fix,
    )


def capture(
    model: PathLike | Module,
    output: PathLike,
    *,
    example_inputs: Inputs | None = None,
    axes: AxisNames | None = None,
    with_cache: Annotated[
        bool,
        "Capture a causal language model as it generates: with its language head, and with keys and values of the "
        "tokens before as inputs `past_key_values.N.key` and outputs `present.N.key`.",
    ] = False,
    trust_pickle: Annotated[
        bool,
        "Read a pickled module. Reading it runs whatever code its maker put into it, with all that you may do on "
        "this machine. Only for files that you made yourself, or whose maker you trust.",
    ] = False,
    inputs: Annotated[
        Sequence[str],
        Option(
            "What the model takes, such as `input_values=float32[batch,samples]`, once for each input. Axes with names "
            "are dynamic. Not needed where the folder's tokenizer and processor or the usual names say it.",
            "NAME=TYPE[AXIS,…]",
            "--input",
        ),
    ] = (),
    tokenizer: Annotated[
        PathLike | None, Option("The `tokenizer.json` of a pickled module, or its folder.", "PATH")
    ] = None,
    max_tokens: Annotated[int | None, Option("The longest input of a pickled module, in tokens.", least=1)] = None,
    lengths: Annotated[
        Sequence[str],
        Option(
            "The lengths that a dynamic axis is to have, such as `sequence=128`, which fixes it, `sequence=64..512`, "
            "`sequence=64..` or `sequence=multiple-of-8`. Repeatable.",
            "AXIS=LENGTHS",
            "--axis",
        ),
    ] = (),
    force: Annotated[bool, "Replace what is at the output's place."] = False,
    on_progress: Callable[[str], None] | None = None,
    on_note: OnNote | None = None,
) -> Base:
    """Make a model archive, which holds the graph, the weights and the module paths, and none of the model's code.

    The base of a folder is the bare model. The head of its class, or the modules of sentence-transformers, are its
    `base_head` where heads can express them; a note says what is left out, and why.

    Args:
        model: a Hugging Face folder, or one of sentence-transformers; a torch module; or, with `trust_pickle`, a file
            of `torch.save(module)`.
        output: the archive to write, such as `model.pt`.
        example_inputs: of a module: by name, or in the order of the arguments of `forward`; one row is enough.
        inputs: of any model, in place of examples: `["pixel_values=float32[batch,3,224,224]"]`, all that it is to take.
        axes: of a module: the dynamic axes of each input, `{"input_ids": {0: "batch", 1: "sequence"}}`. If none are
            given, axis 0 of every input is `batch`, and axis 1 of every integer or bool input [batch, tokens] dynamic.
        tokenizer: of a module, pickled or not: a `tokenizer.json`, or a folder with one.
        max_tokens: of a module, likewise: its longest input, in tokens.
        lengths: those that are found by trying if not given.
        on_progress: is told each step before it begins.
        on_note: is told what is left out of the archive, and what was decided where the folder does not say it.

    Raises:
        UsageError: arguments do not go together.
        BaseModelError: torch cannot export the model, or it is no base.
        OutputExistsError, WriteError: the archive cannot be written.
    """
    path = Path(output)
    progress = on_progress or silent
    Output(path, force).ensure_writable(sources=[model, tokenizer])
    if isinstance(model, str | os.PathLike):
        model = Path(model)
        _check_capture(model, with_cache, trust_pickle, described=bool(tokenizer or max_tokens))
    elif (example_inputs is None) == (not inputs):
        fix = f"give {argument('example_inputs')}, or say in {argument('inputs')} what they are"
        raise UsageError("a module is captured with an example of its inputs", fix=fix)
    if with_cache and inputs:
        fix = f"leave {argument('inputs', option='input')} out"
        raise UsageError(f"{argument('with_cache')} makes the inputs of the model itself", fix=fix)
    described = _parse_inputs(inputs)
    bounds = _parse_lengths(lengths)
    require("torch", "torch", "capturing a model")
    from adapter_export.format.base_record import record_key
    from adapter_export.text import read_tokenizer
    from adapter_export.torch_backend.base.example_inputs import described_inputs
    from adapter_export.torch_backend.base.torch_base import capture_pickled, save_base

    text = None if tokenizer is None else read_tokenizer(Path(tokenizer))
    progress(f"opening and capturing {model}" if isinstance(model, Path) else "capturing the module")
    if not isinstance(model, Path):
        if example_inputs is None:
            example_inputs, axes = described_inputs(described)
        save_base(
            model, example_inputs, path, axes=axes, lengths=bounds, tokenizer=text, max_tokens=max_tokens, force=force
        )
    elif trust_pickle:
        capture_pickled(model, path, described, lengths=bounds, tokenizer=text, max_tokens=max_tokens, force=force)
    else:
        require("transformers", "hf", "opening a Hugging Face folder")
        from adapter_export.torch_backend.base.huggingface_folder import capture_folder

        capture_folder(model, path, inputs=described, with_cache=with_cache, lengths=bounds, force=force)
    progress("loading the archive as others will")
    key = record_key(path, None)
    base = open_base(path)
    tell(base.notes, on_note)
    if key is not None:
        with suppress(NoSitesError):  # whoever asks for them is told
            _keep_record(base, key, None)
    return base


def _check_capture(model: Path, with_cache: bool, trust_pickle: bool, *, described: bool) -> None:
    """Refuse arguments that do not go with what the model is."""
    if trust_pickle and (model.is_dir() or with_cache):
        raise UsageError(
            f"{argument('trust_pickle')} is for a pickled module",
            found="a folder" if model.is_dir() else argument("with_cache"),
            fix="leave one of the two out",
        )
    if described and not trust_pickle:
        raise UsageError(
            f"{argument('tokenizer')} and {argument('max_tokens')} describe a pickled module",
            found=f"no {argument('trust_pickle')}",
            fix="leave them out; a Hugging Face folder says both",
        )
    if model.is_file() and not trust_pickle:
        from adapter_export.torch_backend.base.pickles import check_pickled, untrusted

        check_pickled(model)
        raise untrusted(model)


_TYPES = ("float32", "int64", "int32", "bool")
_INPUT = re.compile(r"(?P<name>[A-Za-z_]\w*)=(?P<dtype>\w+)\[(?P<axes>[^\[\]]*)\]")
_AXIS = re.compile(r"[A-Za-z_]\w*|[1-9][0-9]{0,8}")


def _parse_inputs(texts: Sequence[str]) -> tuple[InputRecord, ...]:
    """Read descriptions of inputs such as `input_ids=int64[batch,sequence]`."""
    from adapter_export.format.manifest import InputRecord

    where, records = argument("inputs", option="input"), []
    for text in texts:
        found = _INPUT.fullmatch(text)
        axes = [] if found is None else [axis.strip() for axis in found["axes"].split(",") if found["axes"].strip()]
        if found is None or found["dtype"] not in _TYPES or not all(map(_AXIS.fullmatch, axes)):
            raise UsageError(
                "an input that cannot be read",
                where=where,
                found=f"`{text}`",
                expected=f"`NAME=TYPE[AXIS,…]` with a type of {', '.join(_TYPES)}",
                fix="write it as `input_ids=int64[batch,sequence]`; an axis is a number, or has a name and is dynamic",
            )
        sizes = tuple(int(axis) if axis.isdecimal() else axis for axis in axes)
        records.append(InputRecord(found["name"], found["dtype"], sizes, "values"))
    names = [record.name for record in records]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UsageError("an input is described twice", where=where, found=f"`{twice}`", fix="leave one out")
    return tuple(records)


def _parse_lengths(texts: Sequence[str]) -> dict[str, Lengths]:
    """Read lengths such as `sequence=64..512`, those of one axis together."""
    given: dict[str, list[str]] = {}
    for text in texts:
        axis, _, said = text.partition("=")
        given.setdefault(axis.strip(), []).append(said)
    found = {}
    for axis, parts in given.items():
        said = ",".join(parts)
        try:
            lengths = parse_lengths(said)
        except ValueError:
            lengths = None
        if lengths is None or not _AXIS.fullmatch(axis):
            raise UsageError(
                "lengths that cannot be read, or none at all",
                where=argument("lengths", option="axis"),
                found=f"`{axis}={said}`",
                expected="`AXIS=LENGTHS`",
                fix="write them as `sequence=128`, `sequence=64..512`, `sequence=64..` or `sequence=multiple-of-8`",
            )
        found[axis] = lengths
    return found


def require(library: str, extra: str, needed_for: str) -> ModuleType:
    """Import a library that is an extra; without it, it is a `MissingExtraError`."""
    try:
        return importlib.import_module(library)
    except ModuleNotFoundError as error:
        if error.name != library:
            raise
        raise MissingExtraError(library, extra=extra, needed_for=needed_for) from error


def open_tokenizer(folder: Path, manifest: Manifest, *, fix: str) -> Tokenizer:
    """Return the tokenizer of a bundle; without one it is a `UsageError` with this fix."""
    if manifest.text is None:
        raise UsageError("the bundle has no tokenizer, so it cannot read texts", fix=fix)
    require("tokenizers", "text", "reading texts")
    from adapter_export.runtime.bundle import reader
    from adapter_export.text import read_tokenizer

    return reader(read_tokenizer(folder / manifest.text.tokenizer), manifest)


def silent(_: str) -> None:
    """Hears nothing."""


def tell(notes: Iterable[str], on_note: OnNote | None) -> None:
    """Pass notes to the caller, or warn of them."""
    for note in notes:
        if on_note is None:
            warnings.warn(worded(note), stacklevel=3)
        else:
            on_note(Note(note))
