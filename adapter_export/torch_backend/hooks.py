"""Attach an adapter to a user's module with hooks, for any training loop.

The module is captured once, and sites are detected in the captured graph. If a submodule takes or returns a value of
that graph, a hook reads or replaces it; the module runs with its own `forward`, dropout and loss. Before training, the
hooked module and the captured graph are compared at every site, with random weights in the adapter.
"""

from __future__ import annotations

import inspect
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, make_dataclass, replace
from functools import cache, partial
from operator import attrgetter
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from adapter_export.errors import NoSitesError, TrainingError, UsageError
from adapter_export.format.axes import axis_names
from adapter_export.graph.adapter import HEAD, Adapter
from adapter_export.numerics.sample_inputs import input_cases
from adapter_export.sites.edits import Edit, plan_edits
from adapter_export.sites.site import Site, SiteMap
from adapter_export.sites.site_map import GivenSites, check_complete, sites_of
from adapter_export.torch_backend.attach import AttachedAdapter, attach
from adapter_export.torch_backend.base.capture_module import AxisNames, Inputs, named_tensors, settled
from adapter_export.torch_backend.base.example_inputs import obvious_inputs
from adapter_export.torch_backend.base.torch_base import TorchBase, base_of, weight_facts
from adapter_export.torch_backend.fx_view import modules_of
from adapter_export.torch_backend.splice import cut_piece, every_token, join_piece
from adapter_export.words import quoted

ATTRIBUTE = "adapter"
"""Attribute under which a module gets its adapter, so that `parameters()`, `train()` and `to()` reach it."""

_TOLERANCE = 1e-3
"""Tolerance relative to the largest value: a misplaced hook differs by more, another order of summation by less."""

_NAMED = 5
"""Maximum number of tensors named in a message."""

_SAME = 1e-6
"""Tolerance, relative to the largest value, between the same value in two runs."""


def attach_to_module(
    module: nn.Module,
    adapter: Adapter | Callable[[SiteMap, str], Adapter],
    *,
    example_inputs: Inputs | None = None,
    axes: AxisNames | None = None,
    site_map: GivenSites | None = None,
    learned: Collection[str] | None = None,
) -> HookedAdapter:
    """Attach an adapter, or one made from sites and fingerprint; the module uses it until `detach`.

    The module takes and returns tensors, with float32 weights on the CPU; it may be moved afterwards. The adapter is a
    submodule in the meantime, and all other parameters are frozen. A head adds its result, `logits`, to a dict or
    transformers output that the module returns. Without example inputs, tokens, images or audio are tried under their
    usual names; `learned` names the tensors to train; `None` trains all.

    Raises:
        UsageError: the example inputs do not match the module, or it already has an adapter.
        BaseModelError: torch cannot export the module.
        AdapterError: the adapter does not fit.
        NoSitesError: a site lies inside a `forward`, out of reach of hooks.
    """
    if hasattr(module, ATTRIBUTE):
        raise UsageError(
            f"the module already has an attribute `{ATTRIBUTE}`",
            where=f"`{type(module).__name__}`",
            fix="detach the existing adapter, or rename the attribute",
        )
    inputs_and_axes = (example_inputs, axes) if example_inputs is not None else obvious_inputs(module)
    if inputs_and_axes is None:
        raise UsageError(
            "the inputs of the module are unclear",
            where=f"`{type(module).__name__}.forward{inspect.signature(module.forward)}`"[:300],
            fix="pass `example_inputs`, a dict of tensors by the names of `forward`'s arguments",
        )
    base = base_of(module, *inputs_and_axes)
    sites = sites_of(base.flow, "torch", site_map)
    check_complete(sites, site_map)
    fitted = adapter if isinstance(adapter, Adapter) else adapter(sites, base.fingerprint)
    rng = np.random.default_rng(0)
    # random weights, because a new adapter changes nothing and would hide a misplaced hook
    drawn = {name: rng.normal(0, 0.2, array.shape).astype(np.float32) for name, array in fitted.weights.items()}
    trial = attach(base, replace(fitted, weights=drawn), sites=sites)  # also checks that it fits
    with ExitStack() as undoing:
        hooked = undoing.enter_context(HookedAdapter(module, base, fitted, sites, learned))
        hooked.compare_with(trial)
        undoing.pop_all()
    return hooked


@dataclass(frozen=True)
class Boundary:
    """A tensor that a submodule takes (`side` is `in`) or returns (`out`).

    `call` counts the submodule's calls in one run of the module, from 0; `key` is the index or name among the arguments
    or results; `None` for a result that is a tensor.
    """

    path: str
    call: int
    side: str
    key: int | str | None


@dataclass(frozen=True)
class _Stop:
    """Actions at a boundary: edits replace the value in order, and it is recorded as that of a node.

    A value that only one layer reads belongs to no node.
    """

    at: Boundary
    node: str | None
    edits: tuple[Edit, ...]


class HookedAdapter(AttachedAdapter):
    """An adapter that acts in a user's module through hooks; `base` is the captured module.

    It is a module whose parameters are the adapter's and the head's.
    """

    def __init__(
        self, module: nn.Module, base: TorchBase, adapter: Adapter, sites: SiteMap, learned: Collection[str] | None
    ) -> None:
        super().__init__(base, adapter, sites, learned)
        self.layers = nn.ModuleList(self._layers.values())
        self._module = (module,)  # a tuple, not a submodule, which would be circular
        self._weights = weight_facts(base.program)
        self._signature = inspect.signature(module.forward)
        self._mask_name = self._mask()
        # a different length for each axis, so that axes cannot be mistaken for each other
        lengths = {name: 3 + 2 * place for place, name in enumerate(axis_names(base.inputs))}
        case = input_cases(base.inputs, seed=0, max_tokens=base.max_tokens, shapes=[lengths])[-1]  # with padding
        self._inputs = {name: torch.from_numpy(array) for name, array in case.arrays.items()}
        boundaries = _Boundaries(module, base, self._inputs)
        self._calls = boundaries.calls
        self._stops = self._planned(boundaries)
        self._running = False
        self._count: Counter[str] = Counter()
        self._reached: set[str] = set()
        self._values: dict[str, Tensor] = {}
        self._mask_value: Tensor | None = None
        self._undo = ExitStack()
        self._attach(module)

    def _planned(self, boundaries: _Boundaries) -> dict[tuple[str, str, int], list[_Stop]]:
        """Return the actions at each side of each call of a submodule."""
        index = self.base.index
        acting = [(site, self._layers[site.name].graph.replaces) for site in self.sites if site.name in self._layers]
        replacing: dict[str, list[Edit]] = defaultdict(list)
        needed: dict[str, Site | None] = {}
        inputs: list[_Stop] = []
        for edit in plan_edits(index, acting):
            site, replaced = edit.site, edit.replaced
            read = [_value_of(site, name) for name in self._layers[site.name].graph.inputs if name != replaced]
            needed |= dict.fromkeys(read, site)
            if replaced == "u":
                inputs.append(_Stop(boundaries.input_of(site), None, (edit,)))
            else:
                replacing[_value_of(site, replaced)].append(edit)
        if HEAD in self._layers:
            needed.setdefault(self.sites.final, None)
        values: list[_Stop] = []
        for node in sorted({*needed, *replacing}, key=index.position):
            edits = replacing.get(node, [])
            at = boundaries.of(node, edits[0].site if edits else needed[node], replaced=bool(edits))
            values.append(_Stop(at, node, tuple(edits)))
        stops: dict[tuple[str, str, int], list[_Stop]] = defaultdict(list)
        for stop in [*values, *inputs]:
            stops[stop.at.path, stop.at.side, stop.at.call].append(stop)
        return stops

    def _attach(self, module: nn.Module) -> None:
        for tensor in module.parameters():
            self._undo.callback(tensor.requires_grad_, tensor.requires_grad)
            tensor.requires_grad_(False)
        module.add_module(ATTRIBUTE, self)
        self._undo.callback(module.__delattr__, ATTRIBUTE)
        self.train(module.training)
        self._undo.callback(module.register_forward_pre_hook(self._start, with_kwargs=True).remove)
        for path in {path for path, _, _ in self._stops}:
            submodule = module.get_submodule(path)
            enter, leave = partial(self._enter, path), partial(self._leave, path)
            self._undo.callback(submodule.register_forward_pre_hook(enter, with_kwargs=True).remove)
            self._undo.callback(submodule.register_forward_hook(leave).remove)
        self._undo.callback(module.register_forward_hook(self._finish).remove)

    def detach(self) -> None:
        """Remove the adapter; the module is bit-identical to before, except for changes by the training loop."""
        self._undo.close()

    def to_adapter(self, *, training: Mapping[str, Any] | None = None) -> Adapter:
        """Return the adapter with the current weights; `training` replaces its training record.

        Raises:
            TrainingError: the weights of the module have changed since the adapter was attached.
            TensorError: a weight is NaN or Inf.
        """
        (module,) = self._module
        present: dict[str, Tensor] = dict(module.named_parameters(remove_duplicate=False))
        present |= dict(module.named_buffers(remove_duplicate=False))
        facts = weight_facts(self.base.program, present)
        changed = [f"`{name}`" for name, fact in facts.items() if fact != self._weights[name]]
        if changed:
            raise TrainingError(
                "the weights of the module have changed since the adapter was attached, so it does not fit its base",
                where=f"`{type(module).__name__}`",
                found=", ".join(changed[:_NAMED]) + (f" and {len(changed) - _NAMED} more" * (len(changed) > _NAMED)),
                expected="frozen weights of one type, without running statistics",
                fix="pass only the adapter's parameters to the optimizer, and keep the module in float32",
            )
        return super().to_adapter(training=training)

    def head(self, hidden: Tensor, mask: Tensor | None = None) -> Tensor:
        """Compute the head's result from the final hidden state [batch, tokens, d].

        The mask [batch, tokens] is 1 for real tokens; default: all are real.

        Raises:
            AdapterError: there is no head.
        """
        self._head()
        layer = self._layers[HEAD]
        offered = {"hidden": hidden, "mask": every_token(hidden) if mask is None else mask}
        result: Tensor = layer(*(offered[name] for name in layer.graph.inputs))
        return result

    def _start(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._running = True
        self._count.clear()
        self._reached.clear()
        self._values.clear()
        given = self._signature.bind_partial(*args, **kwargs).arguments
        self._mask_value = None if self._mask_name is None else given.get(self._mask_name)

    def _finish(self, module: nn.Module, _args: object, output: Any) -> Any:
        self._running = False
        counted = {path: number for path, number in self._count.items() if number != self._calls[path]}
        missed = set(self._layers) - self._reached - {HEAD}
        # in training, layers may be dropped randomly
        if counted or (missed and not module.training):
            raise TrainingError(
                "the module ran differently than during its capture, so the adapter did not act at every site",
                found=", ".join(sorted(f"`{name}`" for name in counted or missed)),
                fix="use the arguments of its capture, or train on the captured base",
            )
        if self.head_name is not None and isinstance(output, Mapping):
            logits = self.head(self._values[self.sites.final], self._mask_value)
            kind: Any = type(output)
            if hasattr(kind, "__dataclass_fields__") and self.head_name not in output:
                # a transformers output: wrappers rebuild it from its fields, so the class needs the field
                return _with_member(kind, self.head_name)(**output, **{self.head_name: logits})
            output = _replaced(output, self.head_name, logits)
        self._values.clear()
        return output

    def _enter(
        self, path: str, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Any, dict[str, Any]]:
        call = self._count[path] if self._calls[path] > 1 or self._running else 0
        if call >= self._calls[path] or (self._calls[path] > 1 and not self._running):
            raise TrainingError(
                "calls a module more often than during its capture, so calls cannot be matched to sites",
                where=f"`{path}`",
                found="an additional call",
                expected=f"{self._calls[path]} in each run",
                fix="turn gradient checkpointing off, or train on the captured base",
            )
        self._count[path] += self._running
        for stop in self._stops.get((path, "in", call), ()):
            key = stop.at.key
            value = self._met(stop, dict([*enumerate(args), *kwargs.items()]).get(key))
            if isinstance(key, str):
                kwargs = {**kwargs, key: value}
            else:
                args = _replaced(args, key, value)
        return args, kwargs

    def _leave(self, path: str, _module: nn.Module, _args: object, result: Any) -> Any:
        call = self._count[path] - 1 if self._running else 0
        for stop in self._stops.get((path, "out", call), ()):
            result = _replaced(result, stop.at.key, self._met(stop, dict(_members(result)).get(stop.at.key)))
        return result

    def _met(self, stop: _Stop, value: object) -> Tensor:
        """Replace a value by the layers of some sites in order, and record it."""
        if not isinstance(value, Tensor):
            raise TrainingError(
                "has different inputs or outputs than during its capture",
                where=f"`{stop.at.path}`",
                found=f"no tensor at `{stop.at.key}`",
                fix="use the arguments of its capture, or train on the captured base",
            )
        for edit in stop.edits:
            value = self._acted(edit, value)
            self._reached.add(edit.site.name)
        if stop.node is not None:
            self._values[stop.node] = value
        return value

    def _acted(self, edit: Edit, value: Tensor) -> Tensor:
        site, piece, layer = edit.site, edit.piece, self._layers[edit.site.name]
        own = value if piece is None else cut_piece(value, *piece)
        try:
            read = [
                own if name == edit.replaced else self._values[_value_of(site, name)] for name in layer.graph.inputs
            ]
        except KeyError as error:
            raise TrainingError(
                "runs a site again without its earlier inputs",
                where=f"site `{site.name}`",
                found=f"no `{error.args[0]}`",
                fix="turn gradient checkpointing off, or train on the captured base",
            ) from error
        borrowed = [attrgetter(name)(self._module[0]) for name in layer.borrows]
        result: Tensor = layer(*read, *borrowed)
        return result if piece is None else join_piece(value, result, *piece)

    def compare_with(self, trial: AttachedAdapter) -> None:
        """Compare the hooked module with the captured graph, at every site, both with the weights of `trial`.

        Raises NoSitesError if they differ.
        """
        module = self._module[0]
        tensors, drawn = self.tensors(), trial.tensors()
        originals = {name: tensor.detach().clone() for name, tensor in tensors.items()}
        with torch.no_grad():
            try:
                for name, tensor in tensors.items():
                    tensor.copy_(drawn[name])
                with settled(module), self.observed() as observed, trial.observed() as expected:
                    outputs = [*_run(module, self.base, self._inputs).values()]
                    wanted = [*trial(**self._inputs).values()]
            finally:
                for name, tensor in tensors.items():
                    tensor.copy_(originals[name])
        sites = [name for name, call in expected.items() if name in observed and not _alike(call, observed[name])]
        sites += [name for name in expected if name not in observed and name != HEAD]
        if sites or not all(_close(one, other) for one, other in zip(wanted, outputs, strict=False)):
            raise _unreachable(quoted(sites) or "the outputs", "the module differs from its captured graph there")


def _value_of(site: Site, name: str) -> str:
    """Return the node of one of a site's values."""
    node: str | None = {"h": site.h, "x": site.x, "u": site.u, "y": site.y}[name]
    assert node is not None  # checked when the adapter was fitted
    return node


def _unreachable(where: str, found: str) -> NoSitesError:
    return NoSitesError(
        "hooks cannot attach this adapter to the module",
        where=where,
        found=found,
        expected="a value that a submodule takes or returns",
        fix="train on the captured base instead: save the module with `ae.capture`, and attach to the base",
    )


def _run(module: nn.Module, base: TorchBase, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the outputs of a module for inputs by their names in its base."""
    # clones, because the module may write into its inputs
    values = [inputs[record.name].clone() for record in base.inputs]
    args, kwargs = pytree.tree_unflatten(values, base.program.call_spec.in_spec)
    return dict(named_tensors(module(*args, **kwargs), ""))


class _Boundaries:
    """Boundaries of submodules at which values of a captured graph appear, and the number of calls of each submodule.

    Found by running both on the same inputs: the value of a node is a tensor with equal numbers that is returned by a
    submodule whose `forward` contains the node, or taken by a submodule that reads the node.
    """

    def __init__(self, module: nn.Module, base: TorchBase, inputs: Mapping[str, Tensor]) -> None:
        self.calls: Counter[str] = Counter()
        self._tensors: dict[Boundary, Tensor] = {}
        self._paths = {each: path for path, each in module.named_modules()}
        self._aliases = {path: self._paths[each] for path, each in module.named_modules(remove_duplicate=False)}
        graph = base.flat
        self._nodes = {node.name: node for node in graph.graph.nodes}
        run = fx.Interpreter(graph, garbage_collect_values=False)
        with torch.no_grad(), settled(module), ExitStack() as recording:
            for submodule in module.modules():
                recording.callback(submodule.register_forward_pre_hook(self._enter, with_kwargs=True).remove)
                # first, because a hook of `settled` changes the result of the whole module
                recording.callback(submodule.register_forward_hook(self._leave, prepend=True).remove)
            _run(module, base, inputs)
            run.run(*(inputs[record.name] for record in base.inputs))
        self._values = run.env

    def _enter(self, submodule: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.calls[self._paths[submodule]] += 1
        self._keep(submodule, "in", [*enumerate(args), *kwargs.items()])

    def _leave(self, submodule: nn.Module, _args: object, result: Any) -> None:
        self._keep(submodule, "out", _members(result))

    def _keep(self, submodule: nn.Module, side: str, members: Iterable[tuple[int | str | None, Any]]) -> None:
        path = self._paths[submodule]
        for key, value in members:
            if isinstance(value, Tensor) and value.is_floating_point():
                self._tensors[Boundary(path, self.calls[path] - 1, side, key)] = value.detach()

    def of(self, name: str, site: Site | None, *, replaced: bool) -> Boundary:
        """Return the boundary at which the value of a node appears: preferably where it is made, else where it is read.

        It belongs to a site, or to the head if `site` is `None`. NoSitesError if no submodule takes or returns it, or
        if it is to be replaced and is also read elsewhere.
        """
        node = self._nodes[name]
        modules = modules_of(node)
        value = self._values[node]
        for path in reversed(modules.values()):
            for boundary in self._at(path, "out", value):
                return boundary
        users = [modules_of(user) for user in node.users]
        entered = [next(((key, path) for key, path in user.items() if key not in modules), None) for user in users]
        taken = [call[1] for call in entered if call is not None]
        # the first operation of a submodule, such as a cast, may keep the numbers
        for path in taken if replaced else [*taken, *reversed(modules.values())]:
            for boundary in self._at(path, "in", value) if len(set(entered)) == 1 or not replaced else ():
                return boundary
        raise _unreachable(
            f"site `{site.name}`" if site is not None else "the final hidden state",
            f"`{name}` inside the `forward` of `{list(modules.values())[-1] if modules else ''}`",
        )

    def input_of(self, site: Site) -> Boundary:
        """Return the boundary at which the layer of a site reads its `u`; `NoSitesError` if it is not a submodule."""
        output = self.of(site.h, site, replaced=True)
        assert site.u is not None  # the plan replaces `u` only if the site has one
        value = self._values[self._nodes[site.u]]
        for boundary in self._at(output.path, "in", value):
            if boundary.call == output.call and output.side == "out":
                return boundary
        raise _unreachable(f"site `{site.name}`", f"`{site.u}`, which no submodule `{output.path}` takes")

    def _at(self, path: str, side: str, value: Tensor) -> Iterator[Boundary]:
        """Yield the boundaries of a submodule that have a value, in the order of the run."""
        path = self._aliases.get(path, path)
        for boundary, tensor in self._tensors.items():
            same_width = tensor.numel() and tensor.shape[-1:] == value.shape[-1:]
            if boundary.path == path and boundary.side == side and same_width and _close(value, tensor, _SAME):
                yield boundary


def _alike(one: Any, other: Any) -> bool:
    pairs = [(one.result, other.result), *((value, other.read[name]) for name, value in one.read.items())]
    return all(_close(first, second) for first, second in pairs)


def _close(first: Tensor, other: Tensor, tolerance: float = _TOLERANCE) -> bool:
    """Return whether two tensors differ only by rounding; axes before the last may be merged."""
    if first.numel() != other.numel():
        return False
    first, other = first.reshape(-1), other.reshape(-1)
    return not first.numel() or bool((first - other).abs().max() <= tolerance * first.abs().max())


def _members(value: Any) -> list[tuple[int | str | None, Any]]:
    """Return a tensor, or the members of a tuple, a list or a mapping."""
    if isinstance(value, Mapping):
        return list(value.items())
    return list(enumerate(value)) if isinstance(value, tuple | list) else [(None, value)]


@cache
def _with_member(kind: type, name: str) -> Callable[..., Any]:
    """Return a dataclass with an additional field."""
    return make_dataclass(kind.__name__, [(name, Any, None)], bases=(kind,))


def _replaced(whole: Any, key: int | str | None, value: Tensor) -> Any:
    """Return the arguments or the result of a module with one tensor replaced."""
    if key is None:
        return value
    if isinstance(whole, dict):
        whole[key] = value  # transformers outputs are dicts with attributes of the same names
        return whole
    items = [value if place == key else item for place, item in enumerate(whole)]
    if isinstance(whole, list):
        return items
    return type(whole)(*items) if hasattr(whole, "_fields") else tuple(items)
