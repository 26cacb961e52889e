"""Export a module as a program with dynamic axes, whose inputs and outputs are plain named tensors."""

from __future__ import annotations

import dataclasses
import inspect
import json
import math
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.utils import _pytree as pytree

from adapter_export.errors import BaseModelError, UsageError
from adapter_export.format.axes import names as names_of
from adapter_export.format.lengths import Bounds, axis_lengths
from adapter_export.format.manifest import Axis
from adapter_export.tables import number_of
from adapter_export.torch_backend.base.length_facts import Facts, Run, pristine, program_facts
from adapter_export.torch_backend.base.log_capture import LIBRARY_ERRORS, captured_logs, first_line
from adapter_export.torch_backend.base.program_signature import Signature
from adapter_export.torch_backend.rope import rotary_of_failure, rotary_of_program
from adapter_export.words import argument, quoted

AxisNames = Mapping[str, Mapping[int, str]]
"""Names of the dynamic axes of each input, by axis index. A sum of names, such as `past + sequence`, is a name, too."""

Inputs = Mapping[str, Any] | Sequence[Any]
"""Tensors, or lists, tuples and dicts of tensors, which become separate inputs: `past.0.key`."""

_BATCH, _SEQUENCE = "batch", "sequence"

_FRAME = re.compile(r'File "([^"]+)", line (\d+)')


def capture(
    module: nn.Module, example_inputs: Inputs, axes: AxisNames | None = None, lengths: Bounds | None = None
) -> tuple[ExportedProgram, dict[str, tuple[Axis, ...]]]:
    """Export a module in `eval` mode, without sample inputs and stack traces; the module is not modified.

    Args:
        module: takes tensors; returns tensors in tuples, lists, dicts, dataclasses or the outputs of transformers.
        example_inputs: by name, or in the order of the arguments of `forward`. Their values do not matter, and dynamic
            axes of length 1 are widened. Tensors in lists, tuples and dicts become inputs named with their keys and
            indices: `past_key_values.0.key`.
        axes: dynamic axes; all others are fixed. Default: axis 0 of every input is `batch`, and axis 1 of every integer
            or bool input with two axes is `sequence`; if its length differs from the first one, it is a separate axis,
            such as `decoder_input_ids_sequence`.
        lengths: lengths of dynamic axes, by name: the examples are cut or repeated to one of them, and an axis with a
            single length is fixed.

    Returns:
        The program, and the shape of each input with the names of its dynamic axes.

    Raises:
        UsageError: the inputs or axes do not match the module.
        BaseModelError: torch cannot export the module; the message has the reason and a fix.
    """
    given = _named_inputs(module, example_inputs)
    inputs = dict(_input_tensors(given))
    names = _default_axes(inputs) if axes is None else _checked_axes(inputs, axes)
    bounds = _checked_lengths(names, lengths or {})
    structure = pytree.tree_structure(given)
    trial = pristine(module)  # some models change their computation after a short text
    with settled(trial), captured_logs():
        inputs = _computed(trial, structure, inputs, names, bounds)
    program, shapes = _exported(module, inputs, structure, names, bounds)
    other = _elsewhere(program, shapes, inputs, bounds)
    if other:  # a branch on the length; the other branch may have expressible lengths, such as multiples of a block
        inputs = _resized(inputs, names, other)
        with suppress(BaseModelError):
            again = _exported(module, inputs, structure, names, bounds)
            program, shapes = again if not _elsewhere(*again, inputs, bounds) else (program, shapes)
    return program, shapes


def _elsewhere(
    program: ExportedProgram, shapes: Mapping[str, Sequence[Axis]], inputs: Mapping[str, Tensor], bounds: Bounds
) -> dict[str, int]:
    """Return another length for each axis whose lengths cannot be expressed; empty if there is no such axis."""
    sizes = {axis: inputs[name].shape[at] for name, shape in shapes.items() for at, axis in enumerate(shape)}
    unclear = {axis: facts for axis, facts in facts_of(program, shapes).items() if facts.lengths() is None}
    others = {axis: facts.another(sizes.get(axis, 1)) for axis, facts in unclear.items()}
    return {axis: other for axis, other in others.items() if other is not None and other in axis_lengths(axis, bounds)}


def facts_of(
    program: ExportedProgram, shapes: Mapping[str, Sequence[Axis]], guards: Sequence[str] | None = None
) -> dict[str, Facts]:
    """Return the facts about axis lengths that a program with these inputs states.

    `guards` are its conditions, if the program does not contain them. Errors as for `program_facts`.
    """
    signature = Signature(program, shapes)
    return program_facts(shapes, signature.ranges(), list(program._guards_code) if guards is None else guards)


def live(module: nn.Module, example_inputs: Inputs) -> Run:
    """Return a function that runs a module unchanged, in `eval` mode, on tensors by the program's input names.

    Each run uses a copy of the module that shares its weights.
    """
    given = _named_inputs(module, example_inputs)
    structure, names = pytree.tree_structure(given), [name for name, _ in _input_tensors(given)]
    untouched = pristine(module)

    def run(tensors: Mapping[str, Tensor]) -> Sequence[Tensor]:
        # a fresh copy per run, as a model may change itself when it runs
        fresh = pristine(untouched)
        with settled(fresh):
            outputs = fresh(**pytree.tree_unflatten([tensors[name] for name in names], structure))
        return list(outputs.values())

    return run


def _exported(
    module: nn.Module, inputs: dict[str, Tensor], structure: Any, names: dict[str, dict[int, str]], bounds: Bounds
) -> tuple[ExportedProgram, dict[str, tuple[Axis, ...]]]:
    fixed = {axis for axis, allowed in bounds.items() if allowed.fixed}
    free = {
        name: {place: axis for place, axis in named.items() if not fixed.intersection(names_of(axis))}
        for name, named in names.items()
    }
    shapes = [dict.fromkeys(free[name], Dim.DYNAMIC) for name in inputs]
    with settled(module), _same_lengths(module, free), captured_logs(lines=True):
        try:
            program = torch.export.export(
                module,
                (),
                pytree.tree_unflatten(inputs.values(), structure),
                dynamic_shapes=pytree.tree_unflatten(shapes, structure),
            )
        except LIBRARY_ERRORS as error:
            raise rotary_of_failure(error, module) or _not_exported(error) from error
        rotary = rotary_of_program(program, module)
    if rotary is not None:
        raise rotary
    _strip(program)
    return program, {
        name: tuple(free[name].get(place, size) for place, size in enumerate(tensor.shape))
        for name, tensor in inputs.items()
    }


def _checked_lengths(names: Mapping[str, Mapping[int, str]], lengths: Bounds) -> Bounds:
    axes = [axis for places in names.values() for axis in places.values()]
    dynamic = list(dict.fromkeys(name for axis in axes for name in names_of(axis)))
    unknown = sorted(set(lengths) - set(dynamic))
    if unknown:
        raise UsageError(
            "unknown dynamic axis",
            where=argument("lengths", option="axis"),
            found=quoted(unknown),
            expected=quoted(dynamic) or "no dynamic axis",
        )
    return lengths


def _named_inputs(module: nn.Module, example: Inputs) -> dict[str, Any]:
    """Return the inputs by name, in the order of `forward`."""
    parameters = inspect.signature(module.forward).parameters.values()
    arguments = [p.name for p in parameters if p.kind in {p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY}]
    inputs = example if isinstance(example, Mapping) else dict(zip(arguments, example, strict=False))
    unknown = sorted(set(inputs) - set(arguments))
    if unknown or not inputs or len(inputs) != len(example):
        raise UsageError(
            "the example inputs do not match the arguments of the model",
            where=f"`{type(module).__name__}.forward`",
            found=", ".join(unknown) or number_of(len(example), "input"),
            expected=f"some of {', '.join(arguments) or 'its arguments by name'}",
            fix="pass a dict of tensors by argument name",
        )
    return {name: inputs[name] for name in arguments if name in inputs}


def _input_tensors(value: Any, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors in torch's order of flattening, with keys and indices joined by dots."""
    if isinstance(value, Tensor):
        yield prefix, value
    elif isinstance(value, dict | list | tuple) and value:
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _input_tensors(item, f"{prefix}.{key}" if prefix else str(key))
    else:
        raise UsageError(
            "an example input is not a tensor",
            where=f"`{prefix}`",
            found=f"`{type(value).__name__}`",
            expected="a tensor, or tensors in a list, a tuple or a dict",
        )


def _default_axes(inputs: Mapping[str, Tensor]) -> dict[str, dict[int, str]]:
    """Return dynamic axes by index; texts of another length than the first get a separate axis, as in a decoder."""
    texts = {
        name: tensor.shape[1] for name, tensor in inputs.items() if tensor.dim() == 2 and not tensor.is_floating_point()
    }
    first = next((length for length in texts.values() if length > 1), 1)
    names = {length: f"{name}_{_SEQUENCE}" for name, length in reversed(texts.items())}
    names |= {first: _SEQUENCE, 1: _SEQUENCE}
    batches: dict[str, dict[int, str]] = {name: {0: _BATCH} if value.dim() else {} for name, value in inputs.items()}
    return {name: axes | ({1: names[texts[name]]} if name in texts else {}) for name, axes in batches.items()}


def _checked_axes(inputs: Mapping[str, Tensor], axes: AxisNames) -> dict[str, dict[int, str]]:
    for name, places in axes.items():
        if name not in inputs or any(not 0 <= place < inputs[name].dim() for place in places):
            raise UsageError(
                "an axis is named that the example inputs do not have",
                where=f"`{name}`",
                found=", ".join(str(place) for place in places),
                expected=", ".join(f"`{key}` with {tensor.dim()} axes" for key, tensor in inputs.items()),
            )
    return {name: dict(axes.get(name, {})) for name in inputs}


_FACTORS = (1, 4, 40, 320, 2560)
"""Factors for unspecified lengths, tried until the module runs: convolutions reject short inputs."""

_LARGEST = 2**25
"""Maximum number of elements of an input with unspecified length."""


def _computed(
    module: nn.Module, structure: pytree.TreeSpec, inputs: Mapping[str, Tensor], axes: AxisNames, bounds: Bounds
) -> dict[str, Tensor]:
    """Return the inputs with the first lengths at which the module runs, with equal results in two runs."""
    failures: list[tuple[Exception, str]] = []
    shapes: list[list[int]] = []
    for factor in _FACTORS:
        lengths = _run_lengths(inputs, axes, factor, bounds)
        before, shapes = shapes, [_shape(tensor, axes[name], lengths) for name, tensor in inputs.items()]
        if before == shapes or (before and max(map(math.prod, shapes)) > _LARGEST):
            break
        widened = _resized(inputs, axes, lengths)
        try:
            # twice: a model that draws random numbers in `eval` mode has no reference
            first, second = (_run(module, structure, list(widened.values())) for _ in range(2))
        except LIBRARY_ERRORS as error:
            failures.append((error, _shapes(widened)))
        else:
            _check_repeated(first, second)
            return widened
    raise _not_computed(module, failures) from failures[0][0]


def _run(module: nn.Module, structure: pytree.TreeSpec, inputs: Sequence[Tensor]) -> dict[str, Tensor]:
    """Return the results by name; neither the module's buffers nor the inputs change."""
    buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
    with torch.no_grad():
        copies = pytree.tree_unflatten([tensor.clone() for tensor in inputs], structure)
        return dict(torch.func.functional_call(module, buffers, (), copies))  # named by the hook of `settled`


_ROUNDING = 1e-3
"""Tolerance between two runs, relative to the largest value: threads may sum in another order."""


def _check_repeated(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> None:
    for name, earlier in first.items():
        other = second[name]
        if earlier.shape == other.shape and (torch.equal(earlier, other) or not earlier.numel()):
            continue
        distance = scale = 1.0
        if earlier.shape == other.shape:
            earlier, other = (values.to(torch.float64).nan_to_num() for values in (earlier, other))
            distance, scale = float((earlier - other).abs().max()), float(earlier.abs().max())
        if distance > _ROUNDING * scale:
            raise BaseModelError(
                "is random in `eval` mode: two runs on the same inputs differ",
                where=f"output `{name}`",
                found=f"a difference of {distance:.2g} at a scale of {scale:.2g}",
                expected="a deterministic model",
                fix="remove randomness from the model, such as dropout that is always on or a random mask, or "
                "make it an input",
            )


def _shapes(inputs: Mapping[str, Tensor]) -> str:
    return ", ".join(f"`{name}` {str(t.dtype).removeprefix('torch.')}{list(t.shape)}" for name, t in inputs.items())


def _not_computed(module: nn.Module, failures: Sequence[tuple[Exception, str]]) -> BaseModelError:
    """Return the error of the shortest and the longest inputs that were tried."""
    messages = [f"{first_line(error)} (for {shapes})" for error, shapes in (failures[0], failures[-1])]
    parameters = [f"`{name}`" for name in inspect.signature(module.forward).parameters]
    return BaseModelError(
        "the model cannot run on example inputs",
        where=f"`{type(module).__name__}.forward`",
        found="; ".join(dict.fromkeys(messages)),
        expected=f"compatible inputs named {', '.join(parameters)}",
        fix="describe its inputs with "
        + argument("inputs", ["NAME=TYPE[AXIS,…]"], option="input")
        + ", once per input; "
        "or pass the relevant part of the model to `adapter_export.capture`, with example inputs",
    )


def _run_lengths(inputs: Mapping[str, Tensor], axes: AxisNames, factor: int, bounds: Bounds) -> dict[str, int]:
    """Return lengths of dynamic axes for a run: in bounds, and more than 1, which torch would treat as a constant."""
    lengths: dict[str, int] = {}
    for name, places in axes.items():
        for place, axis in places.items():
            length = inputs[name].shape[place]
            if length == 0 or (length > 1 and lengths.get(axis, 1) not in {1, length}):
                raise UsageError(
                    f"the axis `{axis}` of the example inputs has different lengths",
                    where=f"`{name}`",
                    found=f"{length} and {lengths.get(axis, 'no other')}",
                    expected="one length of at least 1 for all axes with one name",
                )
            lengths[axis] = max(length, lengths.get(axis, 1))
    rows = {places[0] for places in axes.values() if 0 in places}
    lengths = {
        axis: length if length > 1 else (index + 2) * (1 if axis in rows else factor)
        for index, (axis, length) in enumerate(lengths.items())
    }
    for axis, allowed in bounds.items():
        # the minimum may be a special case
        inner = allowed.minimum if allowed.fixed else allowed.minimum + allowed.multiple_of
        lengths[axis] = allowed.near(max(lengths.get(axis, 1), min(inner, allowed.maximum or inner)))
    return lengths


def _resized(inputs: Mapping[str, Tensor], axes: AxisNames, lengths: Mapping[str, int]) -> dict[str, Tensor]:
    """Return copies of the inputs, cut or repeated to the lengths of their axes.

    Each has separate memory: torch treats one tensor given twice as the same input.
    """
    resized = {}
    for name, tensor in inputs.items():
        copy = tensor.detach().clone()
        for place, size in enumerate(_shape(tensor, axes[name], lengths)):
            if size != copy.shape[place]:
                copy = copy.index_select(place, torch.arange(size) % copy.shape[place])
        resized[name] = copy
    return resized


def _shape(tensor: Tensor, axes: Mapping[int, str], lengths: Mapping[str, int]) -> list[int]:
    """Return the shape of an input at lengths of its axes."""
    shape = list(tensor.shape)
    for place, axis in axes.items():
        parts = names_of(axis)
        total = sum(lengths[part] for part in parts) if all(part in lengths for part in parts) else lengths.get(axis)
        shape[place] = shape[place] if total is None else total
    return shape


@contextmanager
def settled(module: nn.Module) -> Iterator[None]:
    """Set the module to `eval` mode, without a cache, with dense experts, returning named tensors; restore it after."""
    with ExitStack() as stack:
        for inner in module.modules():
            stack.callback(setattr, inner, "training", inner.training)
            config: Any = getattr(inner, "config", None)  # encoder and decoder may have separate copies
            if getattr(config, "use_cache", None) is not None:
                stack.callback(setattr, config, "use_cache", config.use_cache)
                # a `DynamicCache` in the output is no type that torch can export
                config.use_cache = False
        # fused layers hide their sublayers, and cannot be exported
        fast = torch.backends.mha.get_fastpath_enabled()
        stack.callback(torch.backends.mha.set_fastpath_enabled, fast)
        torch.backends.mha.set_fastpath_enabled(False)
        stack.callback(module.register_forward_hook(_return_named_tensors).remove)
        stack.enter_context(dense_experts(module))
        module.eval()
        yield


@contextmanager
def _same_lengths(module: nn.Module, axes: AxisNames) -> Iterator[None]:
    """Tell torch that axes with one name have one length before it infers anything else."""
    places = [(name, place, axis) for name, named in axes.items() for place, axis in named.items()]
    first = {axis: (name, place) for name, place, axis in reversed(places)}
    check: Any = torch._check  # only some torch releases have types for it

    def assert_lengths(_module: nn.Module, _args: object, inputs: dict[str, Any]) -> None:
        tensors = dict(_input_tensors(inputs))
        for name, place, axis in places:
            known, at = first[axis]
            if (name, place) != (known, at):
                check(tensors[name].shape[place] == tensors[known].shape[at])

    with module.register_forward_pre_hook(assert_lengths, with_kwargs=True):
        yield


def _return_named_tensors(_module: nn.Module, _inputs: object, output: object) -> dict[str, Tensor]:
    found = dict(named_tensors(output, ""))
    if not found:
        raise BaseModelError("does not return tensors", found=f"`{type(output).__name__}`", expected="tensors")
    return found


def named_tensors(value: Any, prefix: str) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors that a module returns, with keys and indices joined by dots; a single tensor is `output_0`."""
    if isinstance(value, Tensor):
        yield prefix or "output_0", value
        return
    for key, item in _members(value, prefix):
        if item is not None:
            yield from named_tensors(item, f"{prefix}.{key}" if prefix else key)


def _members(value: Any, prefix: str) -> list[tuple[str, Any]]:
    if isinstance(value, Mapping):
        return [(str(key), item) for key, item in value.items()]
    if hasattr(value, "_fields"):
        return list(zip(value._fields, value, strict=True))
    if isinstance(value, tuple | list):
        return [(str(index) if prefix else f"output_{index}", item) for index, item in enumerate(value)]
    if dataclasses.is_dataclass(value):
        return [(field.name, getattr(value, field.name)) for field in dataclasses.fields(value)]
    raise BaseModelError(
        "returns a value that is not a tensor",
        where=f"output `{prefix}`" if prefix else None,
        found=f"`{type(value).__name__}`",
        expected="tensors, or tuples, lists, dicts and dataclasses of tensors",
        fix="wrap the model so that it returns tensors only",
    )


_FIX = argument("lengths", ["sequence=128"], option="axis", words="sequence=128")
_REMEDIES = (
    ("specialized", "fix that axis, such as with " + _FIX + ", or remove the constant length from the model"),
    ("Constraints violated", "fix that axis, such as with " + _FIX),
    ("data-dependent", "remove the branch on the values of a tensor from the model"),
    ("DataDependent", "remove the branch on the values of a tensor from the model"),
    ("Cache", "turn the cache off (`use_cache=False`), or wrap the model so that it returns tensors only"),
)


def _not_exported(error: Exception) -> BaseModelError:
    text = f"{type(error).__name__} {error}"
    remedy = next((remedy for mark, remedy in _REMEDIES if mark in text), None)
    # pick the line with the axis or op: torch marks each of several causes with a dash
    causes = (line.strip().removeprefix("- ") for line in str(error).splitlines() if line.strip().startswith("- "))
    return BaseModelError(
        "torch cannot export the model",
        found=next(causes, first_line(error)),
        expected="a model that `torch.export.export` supports",
        fix=remedy or "wrap the model so that it computes with tensors only, and try `torch.export.export` on it",
    )


def _forget_unused(graph: torch.fx.Graph) -> None:
    """Remove writes into new memory that nothing reads, as in models that create layers when they run (BigBird)."""
    for node in reversed(list(graph.nodes)):
        if node.users or not isinstance(node.target, torch._ops.OpOverload) or not node.target._schema.is_mutable:
            continue
        chain = [node]
        while "empty" not in str(chain[-1].target) and chain[-1].args and isinstance(chain[-1].args[0], torch.fx.Node):
            chain.append(chain[-1].args[0])
        alone = all(list(above.users) == [below] for below, above in pairwise(chain))
        if alone and "empty" in str(chain[-1].target) and all("detach" in str(one.target) for one in chain[1:-1]):
            for one in chain:
                graph.erase_node(one)


def _strip(program: ExportedProgram) -> None:
    """Remove sample inputs, and stack traces except the line of source: they contain folders of this machine.

    Bounds of sums of lengths are removed, too: they follow from those of the lengths, and torch does not load them.
    """
    _forget_unused(program.graph)
    program.example_inputs = None
    bounds = program.range_constraints
    for size in [size for size in bounds if not size.is_symbol]:
        del bounds[size]
    for graph_module in program.graph_module.modules():
        if isinstance(graph_module, torch.fx.GraphModule):
            for node in graph_module.graph.nodes:
                line = source_line(node.meta.pop("stack_trace", None) or "")
                node.meta |= {} if line is None else {"stack_trace": line}


def source_line(trace: str) -> str | None:
    """Return the innermost line of a stack trace outside torch, by module path: `transformers/activations.py:59`."""
    # the longest first, as one root may be inside another
    roots = [root for root in sorted(sys.path, key=len, reverse=True) if root]
    lines = []
    for name, number in _FRAME.findall(trace):
        path = Path(name)
        root = next((each for each in roots if path.is_relative_to(each)), path.parent)
        lines.append(f"{path.relative_to(root).as_posix()}:{number}")
    return next((line for line in reversed(lines) if not line.startswith("torch/")), lines[-1] if lines else None)


def model_type(module: nn.Module) -> str | None:
    """Return the name of a module's architecture in transformers: its own, or that of the only model inside it."""
    configs = [getattr(inner, "config", None) for inner in module.modules()]
    types = [getattr(config, "model_type", None) for config in configs]
    known = list(dict.fromkeys(name for name in types if isinstance(name, str) and name))
    return known[0] if known and (known[0] == types[0] or len(known) == 1) else None


def model_config(module: nn.Module) -> str | None:
    """Return the configuration of a model of transformers as JSON; `None` for another module, even around one."""
    config: Any = getattr(module, "config", None)
    if not isinstance(getattr(config, "model_type", None), str) or not hasattr(module, "base_model_prefix"):
        return None
    with suppress(TypeError, ValueError):  # a configuration with values that JSON lacks
        return json.dumps(config.to_dict(), sort_keys=True)
    return None


def most_tokens(module: nn.Module) -> int | None:
    """Return the number of positions in a module's `config`, without those skipped by a padding row (RoBERTa)."""
    config: Any = getattr(module, "config", None)
    known = []
    with suppress(NotImplementedError):  # XLNet raises it: it has no limit
        known = [getattr(config, name, None) for name in ("max_position_embeddings", "max_target_positions")]
    positions = next((number for number in known if isinstance(number, int) and number > 0), None)
    if positions is None:
        return None
    tables = [table for name, table in module.named_modules() if "position" in name and isinstance(table, nn.Embedding)]
    skipped = [
        table.padding_idx + 1 for table in tables if table.num_embeddings == positions and table.padding_idx is not None
    ]
    return positions - max(skipped, default=0)


_OF_EXPERTS = ("has_gate", "has_bias", "is_transposed", "has_post_expert_norm", "down_proj")
"""Attributes of a module of experts, set by transformers' `use_experts_implementation` and its classes."""


@contextmanager
def dense_experts(module: nn.Module) -> Iterator[None]:
    """Make modules of experts compute every expert for every token, and weight experts that were not chosen with 0.

    The other implementations multiply by the number of tokens per expert, which is unknown to an exported program
    (`grouped_mm`, `eager`), or copy the weights of the chosen experts for each token (`batched_mm`).
    """
    experts = [inner for inner in module.modules() if all(hasattr(inner, name) for name in _OF_EXPERTS)]
    try:
        for inner in experts:
            inner.forward = MethodType(_all_experts, inner)
        yield
    finally:
        for inner in experts:
            del inner.forward


def _all_experts(self: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """Return the weighted sum [tokens, width] of the results of the chosen experts, as defined by transformers."""
    up, up_bias = ("gate_up_proj", "gate_up_proj_bias") if self.has_gate else ("up_proj", "up_proj_bias")
    activation = self._apply_gate if self.has_gate else self.act_fn
    # every expert for every token, so that no shape depends on the routing
    value = activation(_products(self, hidden_states, up, up_bias))
    value = _products(self, value, "down_proj", "down_proj_bias")  # [experts, tokens, width]
    if self.has_post_expert_norm:
        value = self.post_expert_norm(value)
    chosen = top_k_index.unsqueeze(-1) == torch.arange(value.shape[0], device=value.device)  # [tokens, chosen, experts]
    weights = (chosen.to(value.dtype) * top_k_weights.unsqueeze(-1)).sum(1)
    result: Tensor = (value * weights.transpose(0, 1).unsqueeze(-1)).sum(0)
    return result.to(hidden_states.dtype)


def _products(experts: Any, value: Tensor, name: str, bias: str) -> Tensor:
    weight = getattr(experts, name)
    product = torch.matmul(value, weight if experts.is_transposed else weight.transpose(-2, -1))
    return product + getattr(experts, bias).unsqueeze(1) if experts.has_bias else product
