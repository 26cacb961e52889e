"""Bases as torch archives: saved, loaded, described; and conversion of modules and pickles into bases."""

from __future__ import annotations

import gc
import hashlib
import inspect
import io
from base64 import b64decode, b64encode
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from itertools import accumulate
from operator import attrgetter
from pathlib import Path
from typing import IO, TYPE_CHECKING, BinaryIO, TypeVar, cast

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from adapter_export.errors import (
    BaseModelError,
    InputError,
    RequestError,
    UnknownFieldError,
    UsageError,
    WriteError,
    within,
)
from adapter_export.format.adapter_files import adapter_bytes, parse_adapter
from adapter_export.format.axes import narrowed, with_caches
from adapter_export.format.files import canonical_json
from adapter_export.format.generation import ARCHIVED_CHAT, CapturedChat, captured_chat_json, parse_captured_chat
from adapter_export.format.golden_texts import GoldenTexts, golden_texts_json, parse_golden_texts
from adapter_export.format.lengths import Bounds, Lengths
from adapter_export.format.manifest import Axis, InputRecord, OutputRecord, token_axis, token_lengths
from adapter_export.format.media import ARCHIVED_MEDIA, CapturedMedia, captured_media_json, parse_captured_media
from adapter_export.format.model_config import Generation
from adapter_export.format.records import record_from_json, version_checked
from adapter_export.graph.adapter import BASE_HEAD, Adapter
from adapter_export.safe_io.documents import parse_json
from adapter_export.safe_io.output import Output
from adapter_export.safe_io.parsers import parsing
from adapter_export.safe_io.regular_files import open_regular
from adapter_export.sites.view import HEAD_INPUT, FlowGraph, FlowIndex, FlowNode
from adapter_export.tables import number_of
from adapter_export.torch_backend.base.archive import (
    Archive,
    memoized,
    readable,
    screen,
    stored_weights,
    write_outline,
)
from adapter_export.torch_backend.base.capture_module import (
    AxisNames,
    Inputs,
    capture,
    facts_of,
    live,
    model_config,
    model_type,
    most_tokens,
)
from adapter_export.torch_backend.base.example_inputs import Examples, described_inputs, obvious_inputs
from adapter_export.torch_backend.base.expand_sums import open_sums
from adapter_export.torch_backend.base.length_facts import (
    Run,
    may_pad,
    only_some,
    probed_lengths,
    shortest_computed,
)
from adapter_export.torch_backend.base.log_capture import LIBRARY_ERRORS, captured_logs, first_line
from adapter_export.torch_backend.base.pickles import check_exported, check_pickled
from adapter_export.torch_backend.base.program_signature import Signature
from adapter_export.torch_backend.fx_view import flow_graph
from adapter_export.version import __version__
from adapter_export.words import argument, quoted

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer as Buffer

Read = TypeVar("Read")

NOTE, TOKENIZER = "adapter_export.json", "tokenizer.json"
HEAD_GRAPH, HEAD_WEIGHTS = "base_head.adapter_graph.json", "base_head.weights.safetensors.base64"
"""Files that `write_base` adds to `extra/` of the archive, where torch accepts only text."""

TEXTS = "golden_texts.json"
"""Ids of golden texts from the model's own library, in `extra/`."""

GENERATION = "generation.json"
"""Generation settings of a decoder's folder, in `extra/`."""

MODEL_CONFIG = "model_config.json"
"""Configuration of a model of transformers, in `extra/`."""

_VERSION = "1.1.0"

_LISTED = 8
"""Maximum number of modules named in a note."""


@dataclass(frozen=True)
class CaptureNote:
    """Facts that `write_base` stores with the program, because torch does not keep them.

    `lengths` and `pads` are those of `TorchBase`; without them, the program's own lengths apply.
    """

    inputs: Mapping[str, tuple[Axis, ...]]
    lengths: Mapping[str, Lengths] | None = None
    pads: bool = False
    model_type: str | None = None
    notes: tuple[str, ...] = ()
    source: str | None = None
    version: str = _VERSION
    producer: str = f"adapter-export {__version__}"


def _read_note(text: str) -> CaptureNote:
    where = f"`extra/{NOTE}`"
    try:
        document = parse_json(text.encode(), where)
        with version_checked(document, _VERSION, where):
            return record_from_json(CaptureNote, document)
    except InputError as error:
        raise BaseModelError(
            "contains a malformed note (" + error.what + ")",
            where=where,
            found=error.found,
            expected=error.expected,
            fix="save the base again with `ae.capture`",
        ) from error


def weight_facts(
    program: ExportedProgram,
    present: Mapping[str, Tensor] | None = None,
    digests: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Return a line for each parameter and buffer, by name: `<name> <type> <shape> <sha256 of the bytes>`.

    The bytes are in row-major order and little-endian. Tensors in `present` override the program's tensors with the
    same names; `digests` are the SHA-256 of tensors whose bytes have been hashed already.
    """
    facts = {}
    for name, tensor in (*program.named_parameters(), *program.named_buffers()):
        tensor = tensor if present is None else present.get(name, tensor)
        digest = (digests or {}).get(name) or _sha256(tensor)
        dtype = str(tensor.dtype).removeprefix("torch.")
        facts[name] = f"{name} {dtype} {list(tensor.shape)} {digest}\n"
    return facts


def _sha256(tensor: Tensor) -> str:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    # no copy if the memory is contiguous
    return hashlib.sha256(flat.view(torch.uint8).numpy().data if flat.numel() else b"").hexdigest()


def tensors(program: ExportedProgram) -> dict[str, np.ndarray]:
    """Return parameters, buffers and constants by name, without copies and without types that NumPy lacks."""
    lifted = ((name, value) for name, value in program.constants.items() if isinstance(value, Tensor))
    named = {**dict(lifted), **dict(program.named_buffers()), **dict(program.named_parameters())}
    # parameters last, as they win against constants of the same name
    return {name: value.detach().numpy() for name, value in named.items() if value.dtype != torch.bfloat16}


def fingerprint(program: ExportedProgram, digests: Mapping[str, str] | None = None) -> str:
    """Return the SHA-256 over the sorted facts of all parameters and buffers, as `sha256:<hex>`.

    `digests` are those for `weight_facts`.

    A fact is a line such as `encoder.bias float32 [384] 0f3a…`. The fingerprint survives saving and loading, and
    changes with any bit of a weight.
    """
    facts = sorted(weight_facts(program, digests=digests).values())
    return f"sha256:{hashlib.sha256(''.join(facts).encode()).hexdigest()}"


@dataclass(frozen=True)
class TorchBase:
    """A frozen pretrained model: graph and weights, with inputs and outputs in the order of the program.

    `lengths` are valid lengths of its dynamic axes, and `pads` is whether a text of another length may be padded behind
    a mask. If known: the text of its `tokenizer.json`, the name of its architecture in transformers, such as `bert`,
    and the head of the original model, as an adapter without sites. `notes` list omissions and assumptions of the
    capture, `texts` the ids of golden texts from the model's own library, `media` the preprocessing of images or audio,
    `generation` the settings of a decoder, and `chat` its chat templates. `source` is the Hub repository that it was
    captured from, with its commit. `config` is the configuration of a model of transformers as JSON, which determines
    its heads.
    """

    program: ExportedProgram
    fingerprint: str
    inputs: tuple[InputRecord, ...]
    outputs: tuple[OutputRecord, ...]
    lengths: Bounds
    tokenizer: str | None
    model_type: str | None = None
    base_head: Adapter | None = None
    notes: tuple[str, ...] = ()
    texts: GoldenTexts | None = None
    media: CapturedMedia | None = None
    generation: Generation = field(default_factory=Generation)
    pads: bool = False
    source: str | None = None
    config: str | None = None
    chat: CapturedChat | None = None

    @property
    def max_tokens(self) -> int | None:
        """Maximum tokens of a text, if known."""
        return token_lengths(self.inputs, self.lengths).maximum

    @property
    def has_modules(self) -> bool:
        """True: a program stores matrices like the modules."""
        return True

    def tensor(self, name: str) -> np.ndarray | None:
        """Return a floating-point tensor in float32 by its name in the program; `None` if there is none."""
        found = self.program.state_dict.get(name)
        return None if found is None or not found.is_floating_point() else found.detach().float().numpy()

    def table(self, name: str) -> np.ndarray | None:
        """Return a table of lookups by its name in the program."""
        return self.tensor(name)

    def is_same(self, name: str, other: str) -> bool:
        """Return whether two names are those of one tensor: tied weights have several."""
        tensors = [self.program.state_dict.get(each) for each in (name, other)]
        first, second = (None if tensor is None else tensor.data_ptr() for tensor in tensors)
        return name == other or (first is not None and first == second)

    def layer_weight(self, name: str, product: FlowNode | None) -> tuple[np.ndarray | None, bool]:
        """Return the weight of a layer as [out, in], of a norm as [d], and whether the program stores it as [in, out].

        `product` multiplies by it: `Conv1D` of transformers, which is not a `linear`, stores it as [in, out].
        """
        weight = self.tensor(name)
        in_first = product is not None and product.op != "linear"
        return weight.T if in_first and weight is not None else weight, in_first

    def bias_name(self, weight: str, product: FlowNode | None) -> str:  # noqa: ARG002
        """Return the name of the bias that belongs to a weight."""
        return f"{weight.removesuffix('weight')}bias"

    def readers(self, name: str) -> int:
        """Return the number of nodes that read a weight: a language head may share the embeddings'."""
        if name not in self.program.state_dict:
            return 0
        # by address: tied weights have several names
        return self._readers[attrgetter(name)(self.flat).data_ptr()]

    @cached_property
    def _readers(self) -> Counter[int]:
        """Number of nodes that read each tensor, by its address."""
        counts = Counter[int]()
        for node in self.flat.graph.find_nodes(op="get_attr"):
            tensor = attrgetter(node.target)(self.flat)
            counts[tensor.data_ptr()] += len(node.users) if tensor.numel() else 0
        return counts

    @property
    def parameters(self) -> int:
        """Number of its weights."""
        return sum(tensor.numel() for tensor in self.program.parameters())

    @cached_property
    def flat(self) -> fx.GraphModule:
        """Shared flat module for readers that do not modify it: `module` takes longer than opening a small base."""
        return self.module()

    @cached_property
    def flow(self) -> FlowGraph:
        """Graph in which sites are detected."""
        logits = self.results.get(HEAD_INPUT)
        return replace(flow_graph(self.flat), head_input=None if logits is None else str(logits.name))

    @cached_property
    def index(self) -> FlowIndex:
        """Index of the producer and the readers of each value."""
        return FlowIndex(self.flow)

    @cached_property
    def results(self) -> Mapping[str, fx.Node]:
        """Node of each output."""
        (returned,) = self.flat.graph.find_nodes(op="output")
        return dict(zip((record.name for record in self.outputs), pytree.tree_leaves(returned.args[0]), strict=True))

    def module(self) -> fx.GraphModule:
        """Return a new flat module that shares the weights; its placeholders have the inputs' names.

        Sums of activations inside other operators are expanded.
        """
        # the guards reject lengths that the record allows after a comparison, such as 1
        module = self.program.module(check_guards=False)
        open_sums(module)
        for node, record in zip(module.graph.find_nodes(op="placeholder"), self.inputs, strict=True):
            node.name = record.name
        return module

    def axes(self, node: str) -> tuple[Axis, ...]:
        """Return the axes of a value of the graph; dynamic ones have the names used for the inputs."""
        (found,) = (one for one in self.flat.graph.nodes if one.name == node)
        signature = Signature(self.program, {record.name: record.axes for record in self.inputs})
        return signature.axes(found.meta["val"])

    def ordered(self, inputs: Mapping[str, Tensor]) -> list[Tensor]:
        """Return inputs in the order of the program; `RequestError` if one is missing or unknown."""
        names = [record.name for record in self.inputs]
        if set(names) != set(inputs):
            found = ", ".join(sorted(inputs)) or "none"
            raise RequestError("the inputs do not match the base", found=found, expected=", ".join(names))
        return [inputs[name] for name in names]

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Compute every output by name.

        Raises:
            RequestError: an input is missing or unknown, or has a shape or type that the base does not accept.
        """
        args, kwargs = pytree.tree_unflatten(self.ordered(inputs), self.program.call_spec.in_spec)
        try:
            values = pytree.tree_leaves(self.flat(*args, **kwargs))
        except (RuntimeError, IndexError) as error:
            raise RequestError("the base cannot compute these inputs", found=first_line(error)) from error
        return {record.name: value for record, value in zip(self.outputs, values, strict=True)}


def base_of(module: nn.Module, example_inputs: Inputs, axes: AxisNames | None = None) -> TorchBase:
    """Capture a module as a base that shares its weights, without probing the lengths at which it runs.

    Arguments and errors as for `captured_base`.
    """
    program, named = capture(module, example_inputs, axes)
    base = _describe(program, CaptureNote(named, model_type=model_type(module)), None, program._guards_code)
    return replace(base, lengths=_at_most(base, most_tokens(module)))


def captured_base(
    module: nn.Module,
    example_inputs: Inputs,
    *,
    axes: AxisNames | None = None,
    lengths: Bounds | None = None,
    max_tokens: int | None = None,
) -> TorchBase:
    """Capture a module as a base that shares its weights, with the lengths at which program and module agree.

    The module is exported in `eval` mode and not modified. Outputs of transformers, tuples and dataclasses become
    tensors by name (`last_hidden_state`, `output_0`).

    Args:
        module: the model, with float32 weights on the CPU.
        example_inputs: as for `capture`; one row is enough.
        axes: the dynamic axes of each input, `{"input_ids": {0: "batch", 1: "sequence"}}`; as for `capture`.
        lengths: lengths of dynamic axes, as for `capture`; default: all that the model accepts.
        max_tokens: maximum number of tokens that the model was designed for.

    Raises:
        UsageError: the inputs or axes do not match the module.
        BaseModelError: torch cannot export the module, or it is not a base (types other than float32, for example).
    """
    run = live(module, example_inputs)
    example = {axis: own.within(Lengths(1, max_tokens)) or own for axis, own in (lengths or {}).items()}
    program, named = capture(module, example_inputs, axes, example)
    note = CaptureNote(named, model_type=model_type(module))
    described = _describe(program, note, None, program._guards_code)
    base, notes = _with_probed_lengths(described, run, lengths or {}, max_tokens, most_tokens(module))
    return replace(base, notes=(*notes, *_unreached(program, named)), config=model_config(module))


def save_base(
    module: nn.Module,
    example_inputs: Inputs,
    path: Path | str,
    *,
    axes: AxisNames | None = None,
    lengths: Bounds | None = None,
    tokenizer: str | None = None,
    max_tokens: int | None = None,
    force: bool = False,
) -> None:
    """Capture a module and save it as an archive: graph, weights and names; no sample inputs, no pickle.

    Args:
        module: the model, with float32 weights on the CPU.
        example_inputs: as for `capture`; one row is enough.
        path: path of the new file, such as `model.pt`.
        axes: as for `captured_base`.
        lengths: as for `captured_base`.
        tokenizer: the text of a `tokenizer.json`, stored with the program.
        max_tokens: maximum number of tokens that the model was designed for.
        force: whether to replace an existing file.

    Raises:
        UsageError, BaseModelError: as for `captured_base`.
        OutputExistsError: the path exists and `force` is false.
        WriteError: the file cannot be written; no partial file is left.
    """
    path = Path(path)
    with Output(path, force).file() as temporary:
        base = captured_base(module, example_inputs, axes=axes, lengths=lengths, max_tokens=max_tokens)
        _save(replace(base, tokenizer=tokenizer), temporary, path)


def write_base(base: TorchBase, path: Path, *, force: bool = False) -> None:
    """Write a base as an archive, with all known facts about it.

    Raises:
        OutputExistsError: the path exists and `force` is false.
        WriteError: the file cannot be written; no partial file is left.
    """
    with Output(path, force).file() as temporary:
        _save(base, temporary, path)


def _extra(base: TorchBase) -> dict[str, str]:
    """Return the texts in `extra/` of an archive, by file name."""
    axes = {record.name: record.axes for record in base.inputs}
    note = CaptureNote(axes, dict(base.lengths), base.pads, base.model_type, base.notes, base.source)
    extra = {NOTE: canonical_json(asdict(note)).decode()}
    if base.tokenizer is not None:
        extra[TOKENIZER] = base.tokenizer
    if base.base_head is not None:
        graph, weights = adapter_bytes(base.base_head)
        extra |= {HEAD_GRAPH: graph.decode(), HEAD_WEIGHTS: b64encode(weights).decode()}
    if base.texts is not None:
        extra[TEXTS] = golden_texts_json(base.texts).decode()
    if base.media is not None:
        extra[ARCHIVED_MEDIA] = captured_media_json(base.media)
    if base.config is not None:
        extra[MODEL_CONFIG] = base.config
    if base.generation != Generation():
        extra[GENERATION] = canonical_json(asdict(base.generation)).decode()
    if base.chat is not None:
        extra[ARCHIVED_CHAT] = captured_chat_json(base.chat)
    return extra


def _save(base: TorchBase, temporary: Path, path: Path) -> None:
    """Write an archive to a temporary file that will be `path`, and verify that it can be loaded."""
    with temporary.open("wb") as file, captured_logs():
        sink = _Sink(file)
        try:
            torch.export.save(base.program, cast(IO[bytes], sink), extra_files=_extra(base))
        except LIBRARY_ERRORS as error:
            raise BaseModelError(
                "torch cannot save the program", where=path, found=first_line(error), expected="plain tensors"
            ) from error
    if sink.failure is not None:
        raise WriteError(path, sink.failure.strerror or sink.failure) from sink.failure
    with within(path):
        try:  # verify that the screening of `load_base` accepts the file
            screen(temporary)
        except UnknownFieldError:
            raise  # its fix is another torch, not another model
        except BaseModelError as error:
            raise BaseModelError(
                "cannot be saved as a base: the archive " + error.what,
                found=error.found,
                expected=error.expected,
                fix="remove it from the model; `torch.export.export` wrote it into the program",
            ) from error


def _at_most(base: TorchBase, tokens: int | None) -> Bounds:
    """Return the lengths of a base, limited to the model's maximum of tokens; the base's own may be lower."""
    narrower = narrowed(base.inputs, base.lengths, tokens)
    if narrower is None:
        own = token_lengths(base.inputs, base.lengths)
        raise UsageError(
            "accepts more tokens than the model was designed for",
            where=argument("lengths", option="axis"),
            found=str(own),
            expected=f"at most {tokens}",
        )
    return narrower


def _with_probed_lengths(
    base: TorchBase, run: Run, wanted: Bounds, max_tokens: int | None, usual: int | None
) -> tuple[TorchBase, tuple[str, ...]]:
    """Return the base with probed lengths, and notes on lengths that the model accepts but the base does not.

    `usual` is the longest input according to the model's configuration.
    """
    if any(record.role == "cache" for record in base.inputs):
        return replace(base, lengths=_at_most(base, max_tokens)), ()
    facts = facts_of(base.program, {record.name: record.axes for record in base.inputs})

    def program(tensors: Mapping[str, Tensor]) -> Sequence[Tensor]:
        return list(base.run(tensors).values())

    free, axis = Lengths(), token_axis(base.inputs)
    if isinstance(axis, str):  # a position table may have rows that no token reads (RoBERTa)
        wanted = {**wanted, axis: wanted.get(axis, free).within(Lengths(1, max_tokens)) or free}
    probed = probed_lengths(run, program, base.inputs, facts, wanted)
    base = replace(base, lengths={axis: one for axis, one in probed.items() if one != free})
    base = replace(base, lengths=_at_most(base, max_tokens))
    base = replace(base, pads=may_pad(run, program, base.inputs, base.lengths))
    notes: list[str] = []
    for axis, lengths in probed.items():
        requested = wanted.get(axis, free)
        if axis == token_axis(base.inputs):
            requested = requested.within(Lengths(1, usual if max_tokens is None else max_tokens)) or requested
        if lengths.within(requested) != requested:
            shortest = shortest_computed(run, base.inputs, probed, axis)
            if lengths == requested.within(Lengths(shortest)):  # the model rejects shorter inputs, too
                continue
            example = "128" if shortest == lengths.minimum else f"{shortest}..{lengths.minimum - 1}"
            other = argument("lengths", [f"{axis}={example}"], option="axis", words=f"{axis}={example}")
            notes.append(
                f"accepts lengths {lengths} of `{axis}`, because others are computed differently; "
                + other
                + " captures "
                "it for other lengths"
            )
    tokens = token_lengths(base.inputs, base.lengths)
    if not base.pads and not tokens.unbroken:
        notes.append(f"texts with lengths other than {tokens} tokens are rejected: padding would change their results")
    return base, tuple(notes)


def _unreached(program: ExportedProgram, inputs: Iterable[str]) -> Iterator[str]:
    """Yield a note on modules whose weights are unused with these inputs, such as another modality's encoder."""
    nodes = {node.name: node for node in program.graph.nodes}
    weights = {str(one.target): one.arg.name for one in program.graph_signature.input_specs if one.target is not None}
    used = {program.state_dict[name].data_ptr() for name in program.state_dict if nodes[weights[name]].users}
    idle = [name for name, tensor in program.state_dict.items() if tensor.data_ptr() not in used]
    prefixes = {name: list(accumulate(name.split("."), lambda *parts: ".".join(parts))) for name in weights}
    reached = {prefix for name in prefixes.keys() - set(idle) for prefix in prefixes[name]}
    outermost = [next(prefix for prefix in prefixes[name] if prefix not in reached) for name in idle]
    modules = list(dict.fromkeys(prefix for prefix, name in zip(outermost, idle, strict=True) if prefix != name))
    if modules:
        named = quoted(modules[:_LISTED]) + (" …" if len(modules) > _LISTED else "")
        yield f"no output depends on {named} when the inputs are {quoted(inputs)}"


class _Sink(io.RawIOBase):
    """Forwards torch's writes, and keeps a failure for later: torch's writer aborts the process at an exception."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.failure: OSError | None = None

    def write(self, data: Buffer, /) -> int:
        """Write; after the first failure, only pretend to."""
        if self.failure is None:
            try:
                self._file.write(data)
            except OSError as error:
                self.failure = error
        return memoryview(data).nbytes

    def writable(self) -> bool:
        """Return true."""
        return True

    def seekable(self) -> bool:
        """Return true: torch asks, and rewinds when it is done."""
        return True

    def seek(self, offset: int, _whence: int = 0, /) -> int:
        """Do nothing: everything was written in order."""
        return offset


def load_base(path: Path | str, *, trust_pickle: bool = False) -> TorchBase:
    """Load a base from an archive of `write_base` or `torch.export.save`; nothing in the file is run or unpickled.

    The weights stay in the file, which must not be overwritten in place, and are read on access. With `trust_pickle`,
    torch reads the whole file and may run any code in it: only for files whose author you trust.

    Raises:
        FileError: the file cannot be read.
        BaseModelError: it is not an archive, is truncated or damaged, or is not a base.
        UnsafeArchiveError: it could run code.
        UnknownFieldError: it has fields of a newer torch with text in them.
    """
    path = Path(path)
    extra: Mapping[str, str]
    guards: Sequence[str] = ()
    digests: Mapping[str, str] = {}
    if trust_pickle:
        readable(path)
        check_exported(path)
        filled = {NOTE: ""}  # torch fills this dict, unless it is empty
        program, extra = _load(path, path, filled), filled
    else:
        archive = screen(path)
        extra, guards = archive.extra, archive.guards
        copy = io.BytesIO()  # torch's zip reader would read more of the file than was screened
        write_outline(archive, copy)
        copy.seek(0)
        program = _load(copy, path)
        digests = _map_weights(program, archive)
    with within(path):
        note = _read_note(extra[NOTE]) if extra.get(NOTE) else CaptureNote({})
        base = _describe(program, note, extra.get(TOKENIZER) or None, guards, digests)
        media = _read(extra, ARCHIVED_MEDIA, "a processor", parse_captured_media)
        if media is not None and media.record.input not in [record.name for record in base.inputs]:
            raise BaseModelError("contains a processor of another model", found=f"the input `{media.record.input}`")
        return replace(
            base,
            base_head=_read_head(extra, base.fingerprint),
            texts=_read(extra, TEXTS, "golden texts", _texts_of),
            media=media,
            generation=_read(extra, GENERATION, "generation settings", _generation_of) or Generation(),
            config=extra.get(MODEL_CONFIG) or None,
            chat=_read(extra, ARCHIVED_CHAT, "chat templates", parse_captured_chat),
        )


def _map_weights(program: ExportedProgram, archive: Archive) -> dict[str, str]:
    """Replace the weights of a program by those in the file; return the known SHA-256 of their bytes, by name."""
    digests = {}
    for name, stored in stored_weights(archive):
        outline = program.state_dict[name]
        flat = torch.from_numpy(stored.entry).view(outline.dtype)
        weight = flat.as_strided(stored.sizes, stored.strides, stored.offset)
        is_parameter, trained = isinstance(outline, nn.Parameter), outline.requires_grad
        program.state_dict[name] = nn.Parameter(weight, trained) if is_parameter else weight
        if stored.sha256 is not None:
            digests[name] = stored.sha256
    return digests


def _read(extra: Mapping[str, str], name: str, what: str, parse: Callable[[str, str], Read]) -> Read | None:
    """Parse a file in `extra/`, with its location for messages; `None` if it is missing."""
    if not extra.get(name):
        return None
    where = f"`extra/{name}`"
    try:
        return parse(extra[name], where)
    except InputError as error:
        raise BaseModelError(
            f"contains {what} that cannot be read",
            where=where,
            found=error.message.rstrip("."),
            fix="capture the base again",
        ) from error


def _texts_of(text: str, where: str) -> GoldenTexts:
    return parse_golden_texts(text.encode(), where)


def _generation_of(text: str, where: str) -> Generation:
    return record_from_json(Generation, parse_json(text.encode(), where))


def _read_head(extra: Mapping[str, str], fingerprint: str) -> Adapter | None:
    """Read the base head, as strictly as any adapter."""
    if not extra.get(HEAD_GRAPH):
        return None
    places = f"`extra/{HEAD_GRAPH}`", f"`extra/{HEAD_WEIGHTS}`"
    fix = "capture the base again"
    try:
        weights = b64decode(extra.get(HEAD_WEIGHTS, ""), validate=True)
        head = parse_adapter(extra[HEAD_GRAPH].encode(), weights, places, "`extra/`")
    except (InputError, ValueError) as error:
        reason = (error.message if isinstance(error, InputError) else str(error)).rstrip(".")
        raise BaseModelError("contains a head that cannot be read", found=reason, fix=fix) from error
    if head.placements or head.base != fingerprint or head.name != BASE_HEAD:
        reason = f"`{head.name}` for the base {head.base}, with {number_of(len(head.placements), 'site')}"
        expected = f"`{BASE_HEAD}` for {fingerprint}, without sites"
        raise BaseModelError(
            "contains a head of another base", where=places[0], found=reason, expected=expected, fix=fix
        )
    return head


def _load(file: Path | io.BytesIO, path: Path, extra: dict[str, str] | None = None) -> ExportedProgram:
    with captured_logs() as lines:

        def refusal(reason: str) -> BaseModelError:
            # torch logs the reason, and raises a generic error
            logged = (line.exc_info[1] for line in lines if line.exc_info and line.exc_info[1] is not None)
            return BaseModelError(
                "torch cannot load the program",
                where=path,
                found=next(map(first_line, logged), reason),
                expected=f"a program that torch {torch.__version__.partition('+')[0]} can read",
                fix="save it again with `ae.capture`, with the torch that loads it",
            )

        with parsing(refusal), memoized(), _without_collections():
            return torch.export.load(file, extra_files=extra)


@contextmanager
def _without_collections() -> Iterator[None]:
    """Pause the garbage collector, which would look many times through the millions of objects of a graph."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _describe(
    program: ExportedProgram,
    note: CaptureNote,
    tokenizer: str | None,
    guards: Sequence[str],
    digests: Mapping[str, str] | None = None,
) -> TorchBase:
    for name, tensor in (*program.named_parameters(), *program.named_buffers()):
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            raise BaseModelError(
                "has weights of a type that adapters cannot be trained on",
                where=f"`{name}`",
                found=f"`{str(tensor.dtype).removeprefix('torch.')}`",
                expected="`float32`",
                fix="convert the model with `.float()` and save it again",
            )
        if tensor.device.type != "cpu":
            raise BaseModelError(
                "has weights on a device other than the CPU",
                where=f"`{name}`",
                found=f"`{tensor.device}`",
                fix="move the model with `.to('cpu')` and save it again",
            )
    signature = Signature(program, note.inputs)
    inputs, outputs = with_caches(signature.inputs(), signature.outputs())
    axes = {record.name: record.axes for record in inputs}
    lengths: dict[str, Lengths] = dict(note.lengths or {})
    if note.lengths is None:
        for axis, facts in facts_of(program, axes, guards).items():
            own = facts.lengths()
            if own is None:
                raise only_some(facts.condition or f"on `{axis}`")
            lengths |= {axis: own} if own != Lengths() else {}
    return TorchBase(
        program,
        fingerprint(program, digests),
        inputs,
        outputs,
        lengths,
        tokenizer,
        note.model_type,
        notes=note.notes,
        pads=note.pads,
        source=note.source,
    )


def capture_pickled(
    path: Path,
    out: Path,
    inputs: Sequence[InputRecord] = (),
    *,
    lengths: Bounds | None = None,
    tokenizer: str | None = None,
    max_tokens: int | None = None,
    force: bool = False,
) -> None:
    """Read a file of `torch.save(module)`, running its code, and save the module as a base, which contains no code.

    The file can run any code: only for files whose author you trust. Weights in float16 and bfloat16 become float32, as
        for Hugging Face folders. `inputs` are names, types and shapes of the arguments of `forward` (default:
        `obvious_inputs`); the other options are those of `save_base`; `max_tokens` defaults to the module's `config`.

    Raises:
        FileError: the file cannot be read.
        BaseModelError: it is not a pickled module, its class cannot be imported, or it is not a base.
        UsageError: the inputs of the module are unclear and `inputs` is missing, or they do not match `forward`.
        OutputExistsError, WriteError: as for `save_base`.
    """
    readable(path)
    check_pickled(path)
    module = _unpickled(path)
    with within(path):
        examples, axes = _examples(module, inputs)
        limit = max_tokens if max_tokens is not None else most_tokens(module)
        save_base(module, examples, out, axes=axes, lengths=lengths, tokenizer=tokenizer, max_tokens=limit, force=force)


def _unpickled(path: Path) -> nn.Module:

    def refusal(reason: str) -> BaseModelError:
        return BaseModelError("torch cannot read the pickle", where=path, found=reason, fix="save the model again")

    with captured_logs(), parsing(refusal), open_regular(path) as file:
        try:
            module = torch.load(file, map_location="cpu", weights_only=False)
        except (ImportError, AttributeError) as error:
            raise BaseModelError(
                "needs the code of its classes, which Python cannot find",
                where=path,
                found=first_line(error),
                expected="the modules it was saved from, on Python's module path",
                fix="add their folder to `PYTHONPATH`; move a class defined in a script (`__main__`) into a module",
            ) from error
    if not isinstance(module, nn.Module):
        raise BaseModelError(
            "does not contain a module",
            where=path,
            found=f"`{type(module).__name__}`",
            expected="a complete `torch.nn.Module`",
            fix="load the module in Python and save it with `ae.capture`",
        )
    return module.float()  # adapters are trained on float32, which represents narrower types exactly


def _examples(module: nn.Module, records: Sequence[InputRecord]) -> Examples:
    """Return the described example inputs, or else the obvious ones; `UsageError` if neither is available."""
    examples = described_inputs(records) if records else obvious_inputs(module)
    if examples is None:
        raise UsageError(
            "the inputs of the model are unclear",
            where=f"`{type(module).__name__}.forward{inspect.signature(module.forward)}`"[:300],
            expected=argument("inputs", ["NAME=TYPE[AXIS,…]"], option="input") + " per input",
            fix="describe them, for example "
            + argument("inputs", ["x=float32[batch,sequence,64]"], option="input")
            + "; "
            "axes with names are dynamic",
        )
    return examples
