"""An adapter attached by hooks to a module of the user's own, for her own training loop.

The module is captured once, and its sites are found in the captured graph. A value of that graph shows in the module
where some submodule takes or returns it: there a hook reads or replaces it. The module runs as always, with its own
`forward`, its dropout in `train` mode, and any loss. Before anyone trains, the hooked module and the captured graph
are compared at every site, with random weights in the adapter.
"""

from __future__ import annotations

import inspect
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from adapter_export.errors import NoSitesError, TrainingError, UsageError
from adapter_export.format.axes import names as names_of
from adapter_export.graph.adapter import HEAD, Adapter
from adapter_export.numerics.sample_inputs import input_cases
from adapter_export.sites.edits import plan_edits
from adapter_export.sites.index import FlowIndex
from adapter_export.sites.site import Site, SiteMap
from adapter_export.sites.site_map import GivenSites, sites_of
from adapter_export.torch_backend.attach import AttachedAdapter, attach
from adapter_export.torch_backend.base.base import TorchBase, base_of, fingerprint
from adapter_export.torch_backend.base.capture import AxisNames, Inputs, named_tensors, obvious_inputs, settled
from adapter_export.torch_backend.splice import cut_piece, join_piece
from adapter_export.torch_backend.view import flow_graph

Make = Callable[[SiteMap, str], Adapter]
"""Makes an adapter for the sites and the fingerprint of a base."""

ATTRIBUTE = "adapter"
"""The submodule under which a module has its adapter, so that `parameters()`, `train()` and `to()` reach it."""

_SPREAD = 0.2
_TOLERANCE = 1e-3
"""Of the largest number: what is placed wrongly differs by more, what is rounded in another order by less."""


def attach_to_module(
    module: nn.Module,
    adapter: Adapter | Make,
    *,
    example_inputs: Inputs | None = None,
    axes: AxisNames | None = None,
    site_map: GivenSites | None = None,
    learned: Collection[str] | None = None,
) -> HookedAdapter:
    """Attach an adapter to a module of the user's own; until it is detached, the module computes with it.

    The adapter is a submodule of the module meanwhile, all of whose other parameters are frozen. An adapter with a head
    adds the head's result, `logits`, to what the module returns, if that is a dict or an output of transformers.

    Args:
        module: takes and returns tensors, with float32 weights on the CPU; it may be moved once it is attached.
        adapter: the adapter, or what makes one for the module's sites and fingerprint.
        example_inputs: by name, or in the order of the arguments of `forward`; if none are given, tokens, images or
            sound by their usual names.
        axes: the dynamic axes of the example inputs, as `save_base` takes them.
        site_map: sites that are given by hand.
        learned: the adapter's tensors to train; all if not given.

    Raises:
        UsageError: the example inputs are not those of the module, or it has an adapter already.
        BaseModelError: torch cannot export the module.
        AdapterError: the adapter does not fit.
        NoSitesError: a site lies inside a `forward`, where no hook reaches it.
    """
    if hasattr(module, ATTRIBUTE):
        raise UsageError(
            f"the module has a member `{ATTRIBUTE}` already",
            where=f"`{type(module).__name__}`",
            fix="detach the adapter that is there, or rename the member",
        )
    given = (example_inputs, axes) if example_inputs is not None else obvious_inputs(module)
    if given is None:
        raise UsageError(
            "what the module takes is not obvious",
            where=f"`{type(module).__name__}.forward{inspect.signature(module.forward)}`"[:300],
            fix="give `example_inputs`, a dict of tensors by the names of the arguments of `forward`",
        )
    base = base_of(module, *given)
    sites = sites_of(flow_graph(base.module()), "torch", site_map)
    made = adapter if isinstance(adapter, Adapter) else adapter(sites, base.fingerprint)
    trial = attach(base, _with_random_weights(made), sites=sites)  # which checks that it fits
    with ExitStack() as undoing:
        hooked = undoing.enter_context(HookedAdapter(module, base, made, sites, learned))
        hooked.compare_with(trial)
        undoing.pop_all()
    return hooked


def _with_random_weights(adapter: Adapter) -> Adapter:
    rng = np.random.default_rng(0)
    drawn = {name: rng.normal(0, _SPREAD, array.shape).astype(np.float32) for name, array in adapter.weights.items()}
    return replace(adapter, weights=drawn)


@dataclass(frozen=True)
class Boundary:
    """A tensor that a submodule takes or returns.

    Attributes:
        path: the submodule.
        call: which of its calls in one run of the whole module, counted from 0.
        side: whether it is taken or returned.
        key: its place among the arguments or results, or its name; none for a result that is a tensor.
    """

    path: str
    call: int
    side: str
    key: int | str | None


@dataclass(frozen=True)
class _Stop:
    """What happens at a boundary: the value of a node is kept, or replaced at a site.

    Attributes:
        key: where the value is.
        node: its name in the captured graph; none for what one layer alone reads.
        sites: those that replace it, in order.
    """

    key: int | str | None
    node: str | None
    sites: tuple[Site, ...]


class HookedAdapter(AttachedAdapter):
    """An adapter that acts in a module of the user's own, through hooks.

    It is itself a module, whose parameters are the adapter's and the head's.

    Args:
        module: the module.
        base: the module as it was captured.
        adapter: the adapter.
        sites: the sites of the base.
        learned: the adapter's tensors to train; all if not given.
    """

    def __init__(
        self,
        module: nn.Module,
        base: TorchBase,
        adapter: Adapter,
        sites: SiteMap,
        learned: Collection[str] | None = None,
    ) -> None:
        super().__init__(base, adapter, sites, learned)
        self.layers = nn.ModuleList(self._layers.values())
        self._module = (module,)  # not a submodule: that would be a circle
        self._signature = inspect.signature(module.forward)
        self._mask_name = self._mask()
        self._inputs = _sample(base)
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
        """What happens at each side of each call of a submodule."""
        index = FlowIndex(flow_graph(self.base.module()))
        acting = [(site, self._layers[site.name].graph.replaces) for site in self.sites if site.name in self._layers]
        replacing: dict[str, list[Site]] = defaultdict(list)
        needed: dict[str, Site | None] = {}
        found: list[tuple[Boundary, _Stop]] = []
        for edit in plan_edits(index, acting):
            site, replaced = edit.site, edit.replaced
            read = [value_of_site(site, name) for name in self._layers[site.name].graph.inputs if name != replaced]
            needed |= dict.fromkeys(read, site)
            if replaced == "u":
                at = boundaries.input_of(site)
                found.append((at, _Stop(at.key, None, (site,))))
            else:
                replacing[value_of_site(site, replaced)].append(site)
        if HEAD in self._layers:
            needed.setdefault(self.sites.final, None)
        for node in sorted({*needed, *replacing}, key=index.position):
            sites = replacing.get(node, [])
            at = boundaries.of(node, sites[0] if sites else needed[node], replaced=bool(sites))
            found.append((at, _Stop(at.key, node, tuple(sites))))
        stops: dict[tuple[str, str, int], list[_Stop]] = defaultdict(list)
        for at, stop in sorted(found, key=lambda one: one[1].node is None):
            stops[at.path, at.side, at.call].append(stop)
        return dict(stops)

    def _attach(self, module: nn.Module) -> None:
        for tensor in module.parameters():
            self._undo.callback(tensor.requires_grad_, tensor.requires_grad)
            tensor.requires_grad_(False)
        module.add_module(ATTRIBUTE, self)
        self._undo.callback(module.__delattr__, ATTRIBUTE)
        self.train(module.training)
        self._undo.callback(module.register_forward_pre_hook(self._start, with_kwargs=True).remove)
        for path in {path for path, _, _ in self._stops}:
            part = module.get_submodule(path)
            before = part.register_forward_pre_hook(lambda _m, a, k, p=path: self._enter(p, a, k), with_kwargs=True)
            after = part.register_forward_hook(lambda _m, _a, result, p=path: self._leave(p, result))
            self._undo.callback(before.remove)
            self._undo.callback(after.remove)
        self._undo.callback(module.register_forward_hook(self._finish).remove)

    def detach(self) -> None:
        """Take the adapter off; the module is as it was before, bit for bit, where the loop has not changed it."""
        self._undo.close()

    def to_adapter(self, *, training: Mapping[str, Any] | None = None) -> Adapter:
        """The adapter with the present weights.

        Args:
            training: the training record; the adapter's own if none is given.

        Raises:
            TrainingError: the weights of the module are no longer those that it was attached to.
            TensorError: a weight is NaN or Inf.
        """
        (module,) = self._module
        present: dict[str, Tensor] = dict(module.named_parameters(remove_duplicate=False))
        present |= dict(module.named_buffers(remove_duplicate=False))
        if fingerprint(self.base.program, present) != self.base.fingerprint:
            raise TrainingError(
                "the weights of the module have changed while the adapter was attached, so it fits no base",
                where=f"`{type(module).__name__}`",
                expected="frozen weights of one type, and no running statistics",
                fix="give the optimizer the parameters of the adapter alone, and leave the module in float32",
            )
        return super().to_adapter(training=training)

    def head(self, hidden: Tensor, mask: Tensor | None = None) -> Tensor:
        """Compute the head's result, of the shape that its task gives it.

        Args:
            hidden: the final hidden state, [batch, tokens, d].
            mask: 1 for the real tokens, [batch, tokens]; all are real if it is not given.

        Raises:
            AdapterError: there is no head.
        """
        self._head()
        layer = self._layers[HEAD]
        tokens = torch.ones_like(hidden[..., 0]) if mask is None else mask
        offered = {"hidden": hidden, "mask": tokens}
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
        # in training, layers may be dropped at random
        if counted or (missed and not module.training):
            raise TrainingError(
                "the module ran in another way than when it was captured, so the adapter did not act at every site",
                found=", ".join(sorted(f"`{name}`" for name in counted or missed)),
                fix="run it with the arguments that it was captured with, or train on the captured base",
            )
        if self.head_name is not None and isinstance(output, Mapping):
            logits = self.head(self._values[self.sites.final], self._mask_value)
            output = _replaced(output, self.head_name, logits)
        self._values.clear()
        return output

    def _enter(self, path: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        call = self._count[path] if self._calls[path] > 1 or self._running else 0
        if call >= self._calls[path] or (self._calls[path] > 1 and not self._running):
            raise TrainingError(
                "calls a module more often than when it was captured, so it is not known which call is which site",
                where=f"`{path}`",
                found="a further call",
                expected=f"{self._calls[path]} in each run",
                fix="turn gradient checkpointing off, or train on the captured base",
            )
        self._count[path] += self._running
        for stop in self._stops.get((path, "in", call), ()):
            value = self._met(stop, path, dict([*enumerate(args), *kwargs.items()]).get(stop.key))
            if isinstance(stop.key, str):
                kwargs = {**kwargs, stop.key: value}
            else:
                args = _replaced(args, stop.key, value)
        return args, kwargs

    def _leave(self, path: str, result: Any) -> Any:
        call = self._count[path] - 1 if self._running else 0
        for stop in self._stops.get((path, "out", call), ()):
            result = _replaced(result, stop.key, self._met(stop, path, dict(_members(result)).get(stop.key)))
        return result

    def _met(self, stop: _Stop, path: str, value: object) -> Tensor:
        """Keep a value, and let the layers of some sites replace it."""
        if not isinstance(value, Tensor):
            raise TrainingError(
                "takes or returns something else than when it was captured",
                where=f"`{path}`",
                found=f"no tensor at `{stop.key}`",
                fix="run the module with the arguments that it was captured with, or train on the captured base",
            )
        for site in stop.sites:
            value = self._acted(site, value)
            self._reached.add(site.name)
        if stop.node is not None:
            self._values[stop.node] = value
        return value

    def _acted(self, site: Site, value: Tensor) -> Tensor:
        layer = self._layers[site.name]
        start, end = next(iter(site.parts.values())) if site.role == "part" else (0, 0)
        own = cut_piece(value, start, end, site.blocks) if site.role == "part" else value
        try:
            read = [
                own if name == layer.graph.replaces else self._values[value_of_site(site, name)]
                for name in layer.graph.inputs
            ]
        except KeyError as error:
            raise TrainingError(
                "runs a site again without what it read before it",
                where=f"site `{site.name}`",
                found=f"no `{error.args[0]}`",
                fix="turn gradient checkpointing off, or train on the captured base",
            ) from error
        borrowed = [attrgetter(name)(self._module[0]) for name in layer.borrows]
        result: Tensor = layer(*read, *borrowed)
        return join_piece(value, result, start, end, site.blocks) if site.role == "part" else result

    def compare_with(self, trial: AttachedAdapter) -> None:
        """Compare the hooked module with the captured graph, at every site, both with the weights of `trial`.

        Raises:
            NoSitesError: they differ.
        """
        module = self._module[0]
        kept = {name: tensor.detach().clone() for name, tensor in self.tensors().items()}
        try:
            with torch.no_grad():
                for name, tensor in self.tensors().items():
                    tensor.copy_(trial.tensors()[name])
                with settled(module), self.observed() as found, trial.observed() as expected:
                    outputs = [*_run(module, self.base, self._inputs).values()]
                    wanted = [*trial(**self._inputs).values()]
        finally:
            with torch.no_grad():
                for name, tensor in self.tensors().items():
                    tensor.copy_(kept[name])
        sites = [name for name, call in expected.items() if name in found and not _alike(call, found[name])]
        sites += [name for name in expected if name not in found and name != HEAD]
        if sites or not all(_close(one, other) for one, other in zip(wanted, outputs, strict=False)):
            raise _unreachable(
                ", ".join(f"`{site}`" for site in sites) or "the outputs",
                "the module computes something else there than its captured graph",
            )


def value_of_site(site: Site, name: str) -> str:
    """The node of one of a site's values."""
    node: str | None = {"h": site.h, "x": site.x, "u": site.u, "y": site.y}[name]
    assert node is not None  # the adapter was checked to fit
    return node


def _unreachable(where: str, found: str) -> NoSitesError:
    return NoSitesError(
        "hooks cannot act on the module as the adapter asks",
        where=where,
        found=found,
        expected="a value that a submodule takes or returns",
        fix="train on the captured base instead: save the module with `save_base`, and attach to the base",
    )


def _sample(base: TorchBase) -> dict[str, Tensor]:
    """Random inputs, with padding where there is a mask."""
    axes = [name for record in base.inputs for axis in record.axes for name in names_of(axis)]
    lengths = {name: 3 + 2 * place for place, name in enumerate(dict.fromkeys(axes))}
    case = input_cases(base.inputs, seed=0, max_tokens=base.max_tokens, shapes=[lengths])[-1]
    return {name: torch.from_numpy(array) for name, array in case.arrays.items()}


def _run(module: nn.Module, base: TorchBase, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The outputs of a module for inputs by their names in its base."""
    values = [inputs[record.name].clone() for record in base.inputs]
    args, kwargs = pytree.tree_unflatten(values, base.program.call_spec.in_spec)
    return dict(named_tensors(module(*args, **kwargs), ""))


class _Boundaries:
    """Where the values of a captured graph show in its module.

    Found by running both on the same inputs: the value of a node is a tensor that a submodule returns, among those in
    whose `forward` the node lies, or takes, among those that read the node; and its numbers are the same.

    Attributes:
        calls: how often each submodule is called.
    """

    def __init__(self, module: nn.Module, base: TorchBase, inputs: Mapping[str, Tensor]) -> None:
        self.calls: Counter[str] = Counter()
        self._tensors: dict[Boundary, Tensor] = {}
        self._paths = {part: path for path, part in module.named_modules()}
        self._aliases = {path: self._paths[part] for path, part in module.named_modules(remove_duplicate=False)}
        with torch.no_grad(), settled(module), self._recording(module):
            _run(module, base, inputs)
        graph = base.module()
        self._nodes = {node.name: node for node in graph.graph.nodes}
        run = fx.Interpreter(graph, garbage_collect_values=False)
        with torch.no_grad():
            run.run(*(inputs[record.name] for record in base.inputs))
        self._values = run.env

    @contextmanager
    def _recording(self, module: nn.Module) -> Iterator[None]:
        def enter(part: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            path = self._paths[part]
            self.calls[path] += 1
            given: list[tuple[int | str | None, Any]] = [*enumerate(args), *kwargs.items()]
            for key, value in given:
                self._keep(Boundary(path, self.calls[path] - 1, "in", key), value)

        def leave(part: nn.Module, _args: object, result: Any) -> None:
            path = self._paths[part]
            for key, value in _members(result):
                self._keep(Boundary(path, self.calls[path] - 1, "out", key), value)

        with ExitStack() as stack:
            for part in module.modules():
                stack.callback(part.register_forward_pre_hook(enter, with_kwargs=True).remove)
                stack.callback(part.register_forward_hook(leave, prepend=True).remove)
            yield

    def _keep(self, boundary: Boundary, value: object) -> None:
        if isinstance(value, Tensor) and value.is_floating_point():
            self._tensors[boundary] = value.detach()

    def of(self, name: str, site: Site | None, *, replaced: bool) -> Boundary:
        """Where the value of a node shows: where it is made, else where it is read.

        Args:
            name: the node.
            site: whose value it is; none for that of a head.
            replaced: whether everyone who reads it must read it there.

        Raises:
            NoSitesError: no submodule takes or returns it, or not everyone reads it there.
        """
        node = self._nodes[name]
        own = _stack(node)
        value = self._values[node]
        for path in reversed(own.values()):
            for boundary in self._at(path, "out", value):
                return boundary
        users = [_stack(user) for user in node.users]
        entered = [next(((key, path) for key, path in user.items() if key not in own), None) for user in users]
        taken = [call[1] for call in entered if call is not None]
        # what a submodule makes first of what it takes, such as a cast, may be the same numbers
        for path in taken if replaced else [*taken, *reversed(own.values())]:
            for boundary in self._at(path, "in", value) if len(set(entered)) == 1 or not replaced else ():
                return boundary
        raise _unreachable(
            f"site `{site.name}`" if site is not None else "the final hidden state",
            f"`{name}` inside the `forward` of `{list(own.values())[-1] if own else ''}`",
        )

    def input_of(self, site: Site) -> Boundary:
        """Where the layer of a site reads its `u`.

        Raises:
            NoSitesError: it is no submodule.
        """
        output = self.of(site.h, site, replaced=True)
        assert site.u is not None  # who replaces `u` has been told that there is one
        value = self._values[self._nodes[site.u]]
        for boundary in self._at(output.path, "in", value):
            if boundary.call == output.call and output.side == "out":
                return boundary
        raise _unreachable(f"site `{site.name}`", f"`{site.u}`, which no submodule `{output.path}` takes")

    def _at(self, path: str, side: str, value: Tensor) -> Iterator[Boundary]:
        """The boundaries of a submodule that have a value, in the order of the run."""
        path = self._aliases.get(path, path)
        for boundary, tensor in self._tensors.items():
            if boundary.path == path and boundary.side == side and _has_numbers_of(tensor, value):
                yield boundary


def _stack(node: fx.Node) -> dict[str, str]:
    """The calls of modules in which a node lies, the outermost first: what torch calls each, and the module's path."""
    found = (node.meta.get("nn_module_stack") or {}).items()
    return {key: path for key, (path, _) in found if not path.startswith("_empty_nn_module_stack")}


def _has_numbers_of(one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors have the same numbers in order; axes before the last may be one or several."""
    if one.numel() != other.numel() or one.shape[-1:] != other.shape[-1:] or not one.numel():
        return False
    return bool((one.reshape(-1) - other.reshape(-1)).abs().max() <= 1e-6 * other.abs().max())


def _alike(one: Any, other: Any) -> bool:
    pairs = [(one.result, other.result), *((value, other.read[name]) for name, value in one.read.items())]
    return all(_close(first, second) for first, second in pairs)


def _close(one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors differ by rounding alone; axes before the last may be one or several."""
    if one.numel() != other.numel():
        return False
    one, other = one.reshape(-1), other.reshape(-1)
    return not one.numel() or bool((one - other).abs().max() <= _TOLERANCE * one.abs().max())


def _members(value: Any) -> list[tuple[int | str | None, Any]]:
    """A tensor, or the members of a tuple, a list or a mapping."""
    if isinstance(value, Mapping):
        return list(value.items())
    return list(enumerate(value)) if isinstance(value, tuple | list) else [(None, value)]


def _replaced(whole: Any, key: int | str | None, value: Tensor) -> Any:
    """What a module takes or returns, with another tensor in one place."""
    if key is None:
        return value
    if isinstance(whole, dict):
        whole[key] = value  # outputs of transformers are dicts that have attributes of the same names
        return whole
    if isinstance(whole, list):
        return [value if place == key else item for place, item in enumerate(whole)]
    items = [value if place == key else item for place, item in enumerate(whole)]
    return type(whole)(*items) if hasattr(whole, "_fields") else tuple(items)
