"""Compilation of AdapterHub setups to compositions of `graph.compose`.

AdapterHub implements compositions in `methods/bottleneck.py`, and averages of LoRA and IA3 in `LoRALinear.mean` and
`com` (`methods/lora.py`). `pre_forward` derives an adapter's input and residual from the previous value: in a stack,
each adapter uses its own config for this; in an average, all use the first one's; in a fusion, all use the last one's.
The last adapter of the whole composition determines the final step (`post_forward`). Each member is therefore imported
with the config for its position, as an adapter on `h`, and the composition joins their graphs.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from adapter_export.bases.base_view import BaseView, ImportRequest
from adapter_export.dtypes import Weights
from adapter_export.errors import AdapterError, FormatError, within
from adapter_export.format.records import record_from_json
from adapter_export.graph.adapter import Adapter
from adapter_export.graph.compose.attention import FIRST_TEMPERATURE, FusionOptions, attend
from adapter_export.graph.compose.members import Composition, Here, Member, Merged, compose
from adapter_export.graph.graph import AdapterGraph, Node
from adapter_export.graph.kinds.bottleneck_config import BottleneckConfig
from adapter_export.plugins.formats.importers.adapterhub.adapterhub_config import LoraConfig, Method
from adapter_export.plugins.formats.importers.adapterhub.adapterhub_folder import (
    FUSION_CONFIG,
    Block,
    Setup,
    folder_name,
    names_of,
    read_saved,
    sublayer_target,
)
from adapter_export.plugins.formats.importers.adapterhub.methods import (
    EMBEDDINGS,
    as_kind,
    import_bottleneck,
    import_low_rank,
    keys_at_sites,
    without_unused_inverse,
)
from adapter_export.plugins.formats.importers.tensor_map import Recipe, TensorMap, as_it_is, transposed
from adapter_export.sites.site import SiteMap
from adapter_export.tables import number_of
from adapter_export.words import argument, quoted

_IGNORED = ("gate.weight", "gate.bias", "adapter_norm_after.weight", "adapter_norm_after.bias")
"""Member tensors that a fusion ignores: it reads the output of its members before gates and norms."""


@dataclass(frozen=True)
class FusionConfig:
    """`AdapterFusionConfig` with its field names; the last three have no effect on the computation."""

    key: bool
    query: bool
    value: bool
    query_before_ln: bool = False
    residual_before: bool = False
    temperature: bool = False
    value_before_softmax: bool = True
    regularization: bool = False
    value_initialized: bool | str = False
    dropout_prob: float | None = None


@dataclass(frozen=True)
class _Fusion:
    """A fusion layer with its tensors at each site.

    `owner` prefixes its parameter names; `others` counts tensors of other fusions in its file.
    """

    owner: str
    config: FusionConfig
    mapped: TensorMap
    others: int


def compile_setup(setup: Setup, base: BaseView, request: ImportRequest) -> tuple[Adapter, tuple[str, ...]]:
    """Compile a composition to one adapter without a head; return it with notes."""
    methods, sites = _methods(setup), base.sites
    acting = _acting(setup.block, methods, sites)
    members, notes = [], dict[str, None]()
    for number, (name, method) in enumerate(_in_place(setup.block, methods).items(), 1):
        adapter, told = _import_member(setup, name, method, base, by_number=request.by_number)
        members.append(Member(adapter.name, number, adapter))
        notes |= dict.fromkeys(told)
    _check_low_rank(members, setup.block, methods, sites)
    fusions = dict(_fusions(setup, acting, sites, request))
    weights = {key: tensor for fusion in fusions.values() for key, tensor in fusion.mapped.weights.items()}
    embeddings = {site.name for site in sites.of_roles((EMBEDDINGS,))}

    def merged(here: Sequence[Here | None], site: str) -> AdapterGraph:
        present = {name: each for name, each in zip(methods, here, strict=True) if each is not None}
        if site in embeddings:  # the first member's invertible adapter
            chain = Merged("h")
            chain.value = chain.result(next(iter(present.values())), {})
            return chain.graph("h", chain.shared)
        return _Composer(present, methods, fusions).graph(setup.block)

    def parameters_at(site: str, shapes: Mapping[str, tuple[int, ...]]) -> Weights:
        return {parameter: weights[f"{site}.{parameter}"] for parameter in shapes}

    kind = {"Stack": "stack", "Average": "average", "Fuse": "fusion"}[setup.block.kind]
    composed = compose(members, Composition(request.name, kind, {}, parameters_at), merged, None)
    placements = {site.name: composed.placements[site.name] for site in sites if site.name in composed.placements}
    return replace(composed, placements=placements), (*notes, *_notes(setup, methods, fusions.values()))


def _methods(setup: Setup) -> dict[str, Method]:
    """Return the method of each member; AdapterError for compositions that the library does not support."""
    methods: dict[str, Method] = {}
    for name, member in setup.members.items():
        if len(member.config.methods) > 1:
            raise AdapterError(
                "a union in a composition, whose two methods would be composed differently",
                found=f"`{name}`",
                fix="pass " + argument("member", name, option="name") + " to import it separately",
            )
        methods[name] = member.config.methods[0]
    low_rank = {name: method for name, method in methods.items() if isinstance(method, LoraConfig)}
    if not low_rank:
        return methods
    block = setup.block
    flat = len(block.children) == len(methods)
    if not flat or not (block.kind == "Stack" or (block.kind == "Average" and len(low_rank) == len(methods))):
        raise AdapterError(
            "LoRA and IA3 are stacked, with bottlenecks among them or not, or averaged among themselves",
            found=f"`{block.kind}` of {quoted(block.names)}, of which `{next(iter(low_rank))}` is LoRA or IA3",
            expected="a `Stack` of single adapters, or an `Average` of single LoRA or IA3",
            fix="pass " + argument("member", next(iter(low_rank)), option="name") + " to import it separately",
        )
    later = list(low_rank)[1:]
    wrong = [name for name in low_rank if low_rank[name].use_dora or (name in later and low_rank[name].use_gating)]
    if len(low_rank) > 1 and wrong:
        raise AdapterError(
            "is a stack or an average with DoRA, or with a gate that reads another value than the matrices beside it",
            found=quoted(wrong),
            fix="give " + argument("member", option="name") + " with one of its adapters",
        )
    return methods


def _check_low_rank(members: Sequence[Member], block: Block, methods: Mapping[str, Method], sites: SiteMap) -> None:
    low_rank = [isinstance(method, LoraConfig) for method in methods.values()]
    adapters = [member.adapter for member, low in zip(members, low_rank, strict=True) if low]
    if not adapters:
        return
    places = {tuple(adapter.placements) for adapter in adapters}
    if len({adapter.kind for adapter in adapters}) > 1 or (block.kind == "Average" and len(places) > 1):
        raise AdapterError(
            "its members act in different places or ways, and AdapterHub's library cannot run them together",
            found=", ".join(
                f"`{adapter.name}`: {adapter.kind} at {number_of(len(adapter.placements), 'layer')}"
                for adapter in adapters
            ),
            expected="the same method at the same layers in all of them",
        )
    fused = [site.name for site in sites if any(site.name in placed for placed in places) and site.parts]
    if fused and len(members) > 1:
        raise AdapterError("AdapterHub's library cannot compose LoRA or IA3 at fused layers", found=f"`{fused[0]}`")
    narrow = [site for site in sites if site.role == "linear" and site.width != site.width_in]
    both = [site.name for site in narrow if sum(site.name in adapter.placements for adapter in adapters) > 1]
    if both and block.kind == "Stack" and adapters[0].kind == "lora":
        raise AdapterError(
            "in a stack the second LoRA reads what the first one adds, B₂(A₂ B₁(A₁ u)), which is not as wide as the "
            "layer's input here: AdapterHub's library cannot run it",
            found=f"`{both[0]}`",
            fix="give " + argument("member", option="name") + " with one of its adapters",
        )


def _acting(block: Block, methods: Mapping[str, Method], sites: SiteMap) -> dict[str, list[str]]:
    """Return the bottlenecks at each sublayer, after checking that the library supports them."""
    kinds = {name: as_kind(config, name) for name, config in methods.items() if isinstance(config, BottleneckConfig)}
    acting = {}
    for site in sites.sublayers:
        here = [name for name, kind in kinds.items() if kind.component_at(site) is not None]
        with within(f"`{site.name}`"):
            for each in block.blocks():
                _check_block(each, here)
        acting[site.name] = here
    return acting


def _check_block(block: Block, acting: Collection[str]) -> None:
    here = [name for name in block.names if name in acting]
    if block.kind != "Stack" and here and len(here) < len(block.names):
        raise AdapterError(
            "its members act in different places, and AdapterHub's library cannot run a "
            f"`{block.kind}` of which some act at a site and some do not",
            found=f"nothing of {quoted(name for name in block.names if name not in acting)}",
            expected="`mh_adapter`, `output_adapter` and `leave_out` that are the same in all of them",
        )


def _in_place(block: Block, methods: Mapping[str, Method]) -> dict[str, Method]:
    """Return each member's config for its position, acting on `h`, in name order."""
    methods_in_place: dict[str, Method] = {}
    for child in block.children:
        methods_in_place |= {child: methods[child]} if isinstance(child, str) else _in_place(child, methods)
        name = child if isinstance(child, str) else child.names[-1]
        config, first = methods_in_place[name], methods[block.names[0]]
        if isinstance(config, LoraConfig):
            continue
        if block.kind == "Average" and isinstance(child, str) and isinstance(first, BottleneckConfig):
            read, residual = first.original_ln_before, first.residual_before_ln
            if first.is_parallel:  # then `h` and the residual are `x` for all
                read, residual = False, True
            config = replace(config, original_ln_before=read, residual_before_ln=residual)
        elif block.kind == "Fuse":  # only its update
            config = replace(config, residual_before_ln=True, use_gating=False, ln_after=False, dropout=0.0)
            if isinstance(child, str):
                config = replace(config, original_ln_before=False)
        methods_in_place[name] = replace(config, original_ln_after=True)
    return methods_in_place


def _import_member(
    setup: Setup, name: str, method: Method, base: BaseView, *, by_number: bool
) -> tuple[Adapter, tuple[str, ...]]:
    """Import one member as a separate adapter, named as in parameter names."""
    member = setup.members[name]
    saved, notes = member.folder.adapter, member.config.notes
    names = names_of(saved.tensors, member.config.name)
    mapped = TensorMap(saved.tensors, f"{member.folder.path.name}/{saved.weights.name}")
    with within(member.folder.path):
        if isinstance(method, LoraConfig):
            kind: str = method.kind
            notes += import_low_rank(method, names, mapped, replace(base, layer_at=None), by_number=by_number)
        else:
            kind = "bottleneck"
            method, more = without_unused_inverse(method, saved.document, names)
            notes += more
            if method.inv_adapter is not None and name != setup.block.names[0]:
                method = replace(method, inv_adapter=None, inv_adapter_reduction_factor=None)
                mapped.forget((names.inverse or {}).values())
                names = replace(names, modules={**names.modules, "invertible_adapters": {}})
                library_name = member.config.name
                notes += (f"AdapterHub uses only the first invertible adapter: that of `{library_name}` has no effect",)
            notes += import_bottleneck(method, names, mapped, base.sites, kind, by_number=by_number)
            if name in _fused(setup.block):
                modules = names.of("adapters").values()
                mapped.forget(keys[tensor] for keys in modules for tensor in _IGNORED if tensor in keys)
    mapped.check()
    adapter = Adapter(member.label, kind, base.fingerprint, mapped.graphs, mapped.placements, mapped.weights)
    return adapter, (*notes, *mapped.notes())


def _fused(block: Block) -> set[str]:
    """Return the adapters whose bare updates are fused."""
    return {name for each in block.blocks() if each.kind == "Fuse" for name in each.last_names}


def _fusions(
    setup: Setup,
    acting: Mapping[str, Sequence[str]],
    sites: SiteMap,
    request: ImportRequest,
) -> Iterator[tuple[Block, _Fusion]]:
    """Return the layers of all fusions with their tensors."""
    blocks = [block for block in setup.block.blocks() if block.kind == "Fuse"]
    for number, block in enumerate(blocks, 1):
        name = folder_name(",".join(setup.members[last].config.name for last in block.last_names))
        saved = read_saved(setup.path / name / FUSION_CONFIG, request.read_pickle)
        document = saved.document.get("config")
        with within(saved.path):
            if not isinstance(document, dict):
                raise FormatError("is not the config of a fusion", found=f"keys {', '.join(saved.document)}")
            config = record_from_json(FusionConfig, document)
        names = names_of(saved.tensors, name)
        others = {full for full in names.others if f"adapter_fusion_layer.{name}" in full}
        owner = "fusion" if number == 1 else f"fusion_{number}"
        tensors = {full: tensor for full, tensor in saved.tensors.items() if full not in others}
        mapped = TensorMap(tensors, f"{saved.weights.parent.name}/{saved.weights.name}")
        layers = names.of("adapter_fusion_layer")
        keys, _ = keys_at_sites(layers, lambda path: sublayer_target(path, sites), sites, by_number=request.by_number)
        recipes: dict[str, Recipe] = {}
        for part, present in (("query", config.query), ("key", config.key), ("value", config.value)):
            if present:
                recipes[f"{part}.weight"] = transposed(f"{part}.weight", ("d", "d"))
            if present and part != "value":
                recipes[f"{part}.bias"] = as_it_is(f"{part}.bias", ("d",))
        for site in sites.sublayers:
            if not set(block.names) <= set(acting[site.name]):
                continue
            if site.name not in keys:
                mapped.fault(f"every tensor of the fusion at `{site.name}` is missing")
                continue
            if not recipes:  # the library creates a layer that it never calls
                mapped.forget(keys[site.name].values())
            parameters = {parameter: f"{site.name}.{owner}.{parameter}" for parameter in recipes}
            mapped.take(parameters, recipes, {"d": site.width}, keys[site.name])
        mapped.check()
        yield block, _Fusion(owner, config, mapped, len(others))


class _Composer:
    """Joins the graphs of the members at one site; values are named after their nodes."""

    def __init__(
        self, here: Mapping[str, Here], methods: Mapping[str, Method], fusions: Mapping[Block, _Fusion]
    ) -> None:
        self._here, self._methods, self._fusions = here, methods, fusions
        self._chain = Merged("h")

    def graph(self, block: Block) -> AdapterGraph:
        """Return the joined graph."""
        value = self._of(block, "h")
        last = [name for name in block.names if name in self._here][-1]
        method = self._methods[last]
        if self._only_adds(last):
            value = self._chain.once(Node("add", (value, "h"), "result"))
        self._chain.value = value
        replaces = "h" if isinstance(method, LoraConfig) or method.original_ln_after else "y"
        return self._chain.graph(replaces, self._chain.shared)

    def _of(self, block: Block, value: str) -> str:
        """Return the result of a composition for a value instead of `h`."""
        if not any(name in self._here for name in block.names):
            return value
        if block.kind == "Average":
            return self._average(block, value)
        if block.kind == "Fuse":
            return self._fuse(block, value)
        acting = [child for child in block.children if isinstance(child, Block) or child in self._here]
        lost = [at for at, child in enumerate(acting) if self._is_parallel(child)]
        for child in acting[lost[-1] if lost else 0 :]:  # a parallel adapter reads `x` and drops the earlier results
            value = self._of(child, value) if isinstance(child, Block) else self._single(child, value)
        return value

    def _average(self, block: Block, value: str) -> str:
        """Return `1/N·Σ wᵢ·Aᵢ`: the library averages the weighted results."""
        parts = []
        for child, weight in zip(block.children, block.weights, strict=True):
            if isinstance(child, Block):
                result = self._of(child, self._read(block.names[0], value))
            elif self._is_parallel(child):
                result = self._chain.delta(self._here[child], {"x": self._read(block.names[0], value)})
            else:
                result = self._single(child, "x" if self._is_parallel(block.names[0]) else value)
            factor = weight / len(block.children)
            parts.append(self._chain.once(Node("scale", (result,), f"{result}_part", {}, {"factor": factor})))
        total = parts[0]
        for part in parts[1:]:
            total = self._chain.once(Node("add", (total, part), "sum"))
        return total

    def _fuse(self, block: Block, value: str) -> str:
        fusion, last = self._fusions[block], self._methods[block.names[-1]]
        assert isinstance(last, BottleneckConfig), "only bottlenecks are fused"
        read = residual = self._read(block.names[-1], value)
        if last.is_parallel:
            value = "x"  # the output of a parallel adapter, instead of `h`
        elif last.residual_before_ln == "post_add":
            residual = self._chain.once(Node("add", (value, "x"), f"{value}_sum"))
        elif last.residual_before_ln is True:
            residual = value
        added = []
        for child in block.children:
            *before, name = (child,) if isinstance(child, str) else child.names
            reads = read
            for previous in before:
                reads = self._single(previous, reads)
            if isinstance(child, Block) and self._is_parallel(name):
                reads = "x"
            added.append(self._chain.delta(self._here[name], {"x" if self._is_parallel(name) else "h": reads}))
        config = fusion.config
        options = FusionOptions(
            query=config.query,
            key=config.key,
            value=config.value,
            query_before_norm=config.query_before_ln,
            residual_before=config.residual_before,
            value_before_softmax=config.value_before_softmax,
            temperature=FIRST_TEMPERATURE if config.temperature else 1.0,
        )
        attend(self._chain, options, added, value if config.query_before_ln else read, residual, owner=fusion.owner)
        return self._chain.value

    def _read(self, name: str, value: str) -> str:
        """Return the input of an adapter, in place of `h`."""
        method = self._methods[name]
        assert isinstance(method, BottleneckConfig), "LoRA and IA3 are not nested"
        if method.is_parallel:
            return "x"
        return self._chain.normed_sum(value) if method.original_ln_before else value

    def _is_parallel(self, child: Block | str) -> bool:
        """Return whether an adapter, or the one that determines a composition's input, reads `x` instead of `h`."""
        if isinstance(child, Block):
            child = child.last_names[-1] if child.kind == "Fuse" else child.names[0]
        method = self._methods[child]
        return isinstance(method, BottleneckConfig) and method.is_parallel

    def _single(self, name: str, value: str) -> str:
        here = self._here[name]
        if isinstance(self._methods[name], LoraConfig) and value != "h" and self._only_adds(name):
            return self._chain.delta(_reading(here, "x"), {"x": value})  # in a stack, the previous update
        return (self._chain.delta if self._only_adds(name) else self._chain.result)(here, {"h": value})

    def _only_adds(self, name: str) -> bool:
        """Return whether the library adds the residual once, after the whole composition."""
        method = self._methods[name]
        return method.composition_mode == "add" if isinstance(method, LoraConfig) else method.is_parallel


def _reading(branch: Here, value: str) -> Here:
    """Return a LoRA that reads a value of its layer's output width instead of `u`."""
    graph = branch.graph
    nodes = tuple(
        replace(node, inputs=tuple(value if name == "u" else name for name in node.inputs)) for node in graph.nodes
    )
    shapes = {name: tuple("d" if dim == "d_in" else dim for dim in shape) for name, shape in graph.parameters.items()}
    inputs = tuple(value if name == "u" else name for name in graph.inputs)
    return Here(branch.member, replace(graph, inputs=inputs, nodes=nodes, parameters=shapes))


def _notes(setup: Setup, methods: Mapping[str, Method], fusions: Iterable[_Fusion]) -> Iterator[str]:
    fusions = list(fusions)
    if any(fusion.config.temperature for fusion in fusions):
        yield (
            "the fusion's temperature decreases from 50 with every call of the library and is not saved: it stays "
            "at 50, as in the first call after loading"
        )
    fused = {name: methods[name] for name in setup.members if name in _fused(setup.block)}
    ignored = [
        name
        for name, method in fused.items()
        if isinstance(method, BottleneckConfig) and (method.use_gating or method.ln_after)
    ]
    if ignored:
        names = quoted(ignored)
        yield f"a fusion uses updates before gates and norms: those of {names} have no effect"
    parallel = [name for name, method in methods.items() if isinstance(method, BottleneckConfig) and method.is_parallel]
    if parallel and any(block.kind == "Stack" and len(block.children) > 1 for block in setup.block.blocks()):
        yield (
            f"in a stack, AdapterHub's library drops results before a parallel adapter ({quoted(parallel)}), and "
            "the layer's output if another adapter follows; the imported adapter does the same"
        )
    others = sum(fusion.others for fusion in fusions)
    if others:
        yield f"{others} tensors of other fusions in the file were ignored"
    if any(block.kind == "Average" and len(block.children) > 1 for block in setup.block.blocks()):
        yield (
            "AdapterHub divides an average by the number of members although its weights sum to 1; the "
            "imported adapter does the same"
        )
