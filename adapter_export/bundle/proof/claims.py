"""All claims that a check verifies, in order: a graph's sessions are open only while that graph is checked."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial

from adapter_export.bundle.bundle_reader import LEVEL, Graph
from adapter_export.bundle.golden.chat_claim import compare_chats, replay_chats
from adapter_export.bundle.golden.golden_batches import replay_batches
from adapter_export.bundle.golden.golden_media import compare_processors, replay_media
from adapter_export.bundle.golden.golden_vectors import Case, named
from adapter_export.bundle.golden.recorded_runs import compare_runs
from adapter_export.bundle.proof.check_parts import check_parts, check_separation, part_values
from adapter_export.bundle.proof.claim import Claim, GraphClaim
from adapter_export.bundle.proof.compare_arrays import agreements
from adapter_export.bundle.proof.context import Context, Need
from adapter_export.bundle.proof.exact_tensors import check_cut, check_slots, check_tensors
from adapter_export.bundle.proof.invariants import (
    Run,
    check_apart,
    check_fan_out,
    check_native,
    check_outside,
    check_proofs,
    check_record,
    check_row_order,
    check_swap,
    check_weights_apart,
    swaps,
)
from adapter_export.bundle.proof.locate import trace, typical
from adapter_export.bundle.proof.manifest_checks import check_generation, check_manifest
from adapter_export.bundle.proof.model_runs import live_cost, live_model, repeats, uncompared_padding
from adapter_export.bundle.proof.outputs import find_smallest, of_outputs, run_outputs
from adapter_export.bundle.proof.proof_plan import round_robin, trials
from adapter_export.bundle.proof.runtimes import check_providers, check_runtime
from adapter_export.bundle.proof.shapes import check_coverage, check_words, word_cost
from adapter_export.bundle.proof.site_probe import SiteProbe, of_sites
from adapter_export.bundle.report import BASE
from adapter_export.bundle.texts import check_contract, replay
from adapter_export.bundle.variants import VARIANTS
from adapter_export.decoding import Decoding
from adapter_export.format.check_report import Finding
from adapter_export.runtime.generation.golden_schedule import Replay, golden_texts, replay_schedule
from adapter_export.runtime.graphs import run_session
from adapter_export.tables import number_of

_MOST_FAILED_CASES = 3
"""Maximum number of failing cases on which the sites of an adapter are checked."""


def needs(*names: Need) -> frozenset[Need]:
    """Return a set of needs."""
    return frozenset(names)


def agenda(context: Context) -> list[Claim]:
    """Return every claim about a bundle, in order of verification."""
    of_graphs = [claim.of(graph) for graph in context.plan.graphs for claim in GRAPH_CLAIMS if claim.applies(graph)]
    return [*FIRST_CLAIMS, *of_graphs, *LAST_CLAIMS]


def _is_main(graph: Graph) -> bool:
    """Return whether the graph is the one that clients run, and can run as a whole."""
    return (graph.variant, graph.level) == ("slots", LEVEL) and not graph.pieces


def _golden_parts(context: Context, graph: Graph) -> Iterable[Finding]:
    """Measure the golden parts of the adapters in a graph; `check_parts` evaluates them after all graphs have run."""
    parts = [context.bundle.parts(name) for name in context.plan.adapters if name in graph.adapters]
    context.parts += part_values(graph, [each for each in parts if each is not None])
    return ()


def _mixed(context: Context, graph: Graph) -> list[tuple[str | None, ...]]:
    """Return mixed batches to compare row by row; empty if the base is not batch-invariant."""
    bank, batch = context.manifest.bank, context.plan.probe.batch
    if bank is None or not graph.by_row or not context.bundle.batch_invariant or batch == 1:
        return []
    return [chosen for chosen in round_robin(bank.rows, batch) if set(context.plan.names) & set(chosen)]


def _rows_apart(context: Context, graph: Graph) -> Iterator[Finding]:
    for chosen in _mixed(context, graph):
        yield check_apart(graph.run, context.plan.probe, chosen, context.tolerance)


def _fan_out(context: Context, graph: Graph) -> Iterator[Finding]:
    if context.bundle.batch_invariant:
        adapters = [name for name in context.plan.names if name in graph.adapters]
        yield check_fan_out(graph, context.plan.probe, adapters, context.tolerance)


def _runner(context: Context) -> Run:
    """Return a function that runs the main graph the way the Python runtime does."""
    return partial(context.bundle.runtime_session(checksums=True).run, allow_padding=True)


def _small(context: Context) -> Case:
    """Return a small case: bit equality needs few numbers."""
    return typical(context.plan.cases or (context.plan.probe,))


def _swaps(context: Context, _: Graph) -> Iterator[Finding]:
    for first, second in swaps(context.plan.names):
        yield check_swap(_runner(context), _small(context), first, second)


def _adapter_cost(context: Context, _: Graph) -> int:
    return len(context.plan.names)


def _row_order(context: Context, _: Graph) -> Iterator[Finding]:
    for name in context.plan.names:
        yield check_row_order(_runner(context), context.plan.probe, name, context.tolerance)


def _active_adapters(context: Context, _: Graph) -> Iterator[Finding]:
    """Compare adapters loaded by ONNX Runtime itself. It converts no types, so only float32 adapters are compared."""
    if "whole" in context.has or context.bundle.staged:
        case = _small(context)
        for name in context.plan.adapters:
            if context.bundle.record(name).precision == "float32":
                fed = _runner(context)(case.arrays, name)
                yield check_native(name, fed, context.bundle.native_run(name, case.arrays))


def _member_weights(context: Context, graph: Graph) -> Iterable[Finding]:
    """Reject a new bundle whose fusion weights act on other rows, provided that its outputs are right."""
    bundle = context.bundle
    right = all(output.passed for output in context.outputs)
    if bundle.staged and graph.variant == "slots" and right and not graph.pieces and bundle.manifest.batch_invariant:
        run = partial(run_session, bundle.session(graph.file))
        for record in bundle.manifest.adapters:
            if record.mix is not None:
                golden = bundle.golden(record.name).without(bundle.manifest.checksums)
                check_weights_apart(run, record.mix, bundle.tensors(record.name), golden)
    return ()


def _close(context: Context, graph: Graph) -> Iterable[Finding]:
    """Release a graph's memory, unless golden texts, golden batches or the precision comparison need it again.

    Opening a graph with many weights again takes less than keeping a copy of them beside those of the next graph.
    """
    bundle, manifest = context.bundle, context.manifest
    if (graph.variant, graph.level) == ("slots", LEVEL):
        _ = bundle.batch_invariant  # measured now, while the graph is open
    texts = context.original or manifest.golden_texts or manifest.golden_batches
    again = manifest.golden_batches if graph.by_row else texts if graph.variant == "slots" else None
    if graph.level != LEVEL or not again or bundle.has_many_weights:
        bundle.close(graph.file, graph.level)
    return ()


def _close_measured(context: Context) -> Iterable[Finding]:
    """Release the graph that showed whether rows are independent: the model and other levels run before it."""
    bundle = context.bundle
    if bundle.has_many_weights:
        bundle.close(bundle.manifest.graphs["slots"], LEVEL)
    return ()


def _lengths_of_base(context: Context) -> Iterator[Finding]:
    yield from check_record(context.manifest, context.model.inputs, context.model.lengths)


def _sites(context: Context) -> Iterator[Finding]:
    """Compare each adapter at each site with float64; use a failing case for an adapter whose outputs are wrong."""
    bundle, probe = context.bundle, SiteProbe.of(context.bundle)

    def check(name: str, case_name: str) -> bool:
        measurements = probe.check(cases[case_name], bundle.source(name), bundle.record(name), bundle.tensors(name))
        context.sites.extend(measurements)
        return all(finding.passed for finding in measurements)

    usual = context.plan.probe
    cases = {case.name: case for golden in context.expected for case in golden.cases} | {usual.name: usual}
    of_base = any(output.adapter is None and not output.passed for output in context.outputs)
    for name in context.plan.adapters:
        wrong = dict.fromkeys(output.case for output in context.outputs if output.adapter == name and not output.passed)
        right = check(name, usual.name)
        context.progress.step(f"{name}: sites")
        # a ReLU may be inactive on the default case
        if right and not of_base:
            others = [each for each in wrong if each in cases and each != usual.name]
            for each in others[:_MOST_FAILED_CASES]:
                if not check(name, each):
                    break
    yield from of_sites(context.sites)


def _walked(context: Context) -> list[str | None]:
    """Return the adapters to compare node by node: the base, and the adapter that acts at the most sites."""
    plan = context.plan
    if "slots" not in plan.variants or ((plan.brief or plan.narrow) and not plan.every_node):
        return []
    most = max(plan.adapters, key=lambda name: len(context.bundle.source(name).placements), default=None)
    return list(dict.fromkeys(name for name in (None, most) if name in plan.names))


def _nodes(context: Context) -> Iterator[Finding]:
    """Compare node by node: a typical case if all outputs match, and each output that fails."""
    plan, outputs = context.plan, context.outputs
    cases = {case.name: case for golden in context.expected for case in golden.cases}
    smallest = [
        named(context.manifest, output.case) for output in outputs if not output.passed and output.case not in cases
    ]
    cases |= {case.name: case for case in smallest if case is not None}
    graphs = [graph for graph in plan.graphs if graph.level == LEVEL]
    traced = trace(
        graphs,
        context.model.runner,
        list(cases.values()),
        _walked(context),
        outputs,
        repro=plan.repro,
        reporter=context.progress,
    )
    context.locations += traced.locations
    for finding in traced.findings:
        measurements = tuple(measured for measured in finding.measurements if plan.every_node or not measured.passed)
        yield replace(finding, measurements=measurements)


def _main_graph(context: Context) -> Graph:
    return Graph(context.bundle, "slots", context.manifest.graphs["slots"])


def _other_runtimes(context: Context) -> Iterator[Finding]:
    for python in context.plan.runtimes:
        yield from check_runtime(python, _main_graph(context), context.plan.golden)


def _texts(context: Context) -> Iterator[Finding]:
    texts, bundle, names = context.bundle.texts(), context.bundle, context.plan.names
    if texts is not None:
        yield from replay(bundle, texts, names, run=not context.by_pieces and "slots" in context.plan.variants)
        if context.reference is not None and not context.plan.quick:
            yield from check_contract(bundle, texts, names, context.reference.contract)


def _chats(context: Context) -> Iterator[Finding]:
    """Render golden chats, and compare the templates with those of the model."""
    chats, bundle = context.bundle.chats(), context.bundle
    if chats is not None:
        yield replay_chats(bundle, chats)
    if context.reference is not None and not context.plan.quick:
        yield from compare_chats(bundle, context.reference.contract.chat)


def _batches(context: Context) -> Iterator[Finding]:
    batches, graphs = context.bundle.batches(), context.manifest.graphs
    if batches is not None:
        variants = () if context.by_pieces else context.plan.variants
        yield replay_batches(context.bundle, batches, context.plan.names, variants)
        for variant in (row.name for row in VARIANTS.values() if row.by_row and row.name in graphs):
            context.bundle.close(graphs[variant], LEVEL)


def _media(context: Context) -> Iterator[Finding]:
    media, runs = context.manifest.media, not context.by_pieces and "slots" in context.plan.variants
    if media is not None:
        yield from replay_media(context.bundle, context.plan.names, run=runs)
        if context.reference is not None and context.reference.contract.processor is not None:
            yield compare_processors(media.digest, context.reference.contract.processor)


def _generation(context: Context) -> Iterator[Finding]:
    """Regenerate golden texts: each by itself, and by every engine with rows that join and leave."""
    manifest, names = context.manifest, context.plan.names
    if manifest.generation is None or context.by_pieces or "slots" not in context.plan.variants:
        return
    bundle, texts = context.bundle, golden_texts(manifest, names)
    is_large = bundle.has_many_weights  # each step reads all of them, and two sessions have two copies
    replays, by_row = dict[str, Replay](), [variant.name for variant in VARIANTS.values() if variant.by_row]
    if "bank" in context.plan.variants and manifest.batch_invariant and texts:
        if is_large:
            bundle.close(manifest.graphs["slots"], LEVEL)
        replays["bank"] = replay_schedule(bundle.runtime_session(only=by_row).decoder, texts, brief=is_large)
        if is_large:
            bundle.close(manifest.graphs["bank"], LEVEL)
            gc.collect()  # a session and its decoder refer to each other
    session = bundle.runtime_session(only=["slots"])
    faults: dict[str | None, list[str]] = {name: [] for name in names}
    for text in texts:
        row = session.decoder.golden_row(0, text.record, text.adapter, Decoding(len(text.record.tokens)))
        for _ in session.decoder.write_rows([row]):
            pass
        faults[text.adapter] += filter(None, [text.fault(row, row.ends)])
    if texts:
        replays["slots"] = replay_schedule(session.decoder, texts, brief=is_large)
    for name in names:
        sizes = [len(text.record.tokens) for text in texts if text.adapter == name]
        if not sizes:
            reason = "the reference decides no token of a golden text within the budget"
            yield Finding.unverified("golden generation", name or BASE, reason)
            continue
        detail = "; ".join(faults[name][:3]) or f"{number_of(len(sizes), 'text')}, {number_of(sum(sizes), 'token')}"
        yield Finding.tested("golden generation", name or BASE, not faults[name], detail)
        wrong = [
            f"{engine}: {fault}" for engine, replay in replays.items() for fault in replay.faults.get(name, ())[:2]
        ]
        detail = "; ".join(wrong) or "; ".join(f"{engine}: {replay.detail}" for engine, replay in replays.items())
        yield Finding.tested("golden schedule", name or BASE, not wrong, detail)


def _precision(context: Context) -> Iterable[Finding]:
    """Measure the cost of the precision, which is not a claim, and close the Python runtime."""
    if context.original is not None:
        names, original = context.plan.names, context.original
        context.agreements = agreements(context.bundle, names, original, context.progress)
    context.bundle.close_runtime()
    return ()


def _precision_cost(context: Context) -> int:
    return 0 if context.original is None else len(context.plan.names) * len(context.original.cases)


def _manifest(context: Context) -> Iterator[Finding]:
    again = None if context.reference is None else context.budgets_for
    yield from check_manifest(context.bundle, context.needed_budgets, again, quick=context.plan.quick)
    yield from check_generation(
        context.bundle, None if context.reference is None else context.reference.contract.generation
    )


def _tensors(context: Context) -> Iterator[Finding]:
    assert context.model.source is not None
    yield from check_tensors(context.bundle, context.model.source, context.plan.variants, brief=context.plan.brief)


def _left_out(context: Context) -> Iterator[Finding]:
    """Yield an unverified finding for everything that the options of the check exclude."""
    manifest, plan = context.manifest, context.plan
    for name in context.bundle.names:
        if name not in plan.names:
            shown = name or BASE
            yield Finding.unverified("left out", shown, "excluded by `only`", f"`{shown}` is correct")
    for variant in (row.name for row in VARIANTS.values() if row.files(manifest)):
        if variant not in plan.variants:
            claim = f"the graph `{variant}` is correct"
            yield Finding.unverified("left out", f"graph/{variant}", "excluded by `variants`", claim, variant)
    if context.reference is None:
        claim = "constants, nodes and outputs follow from the model"
        reason = "no model was given: golden vectors are the only reference"
        yield Finding.unverified("model", "outputs", reason, claim, "the model the bundle was built from")


WHOLE = needs("whole")

FIRST_CLAIMS: Sequence[Claim] = (
    Claim("memory", _close_measured, needs("model")),
    # compute the expected outputs first: the claims below compare with them
    Claim("padding", uncompared_padding, cost=lambda context: context.model_runs),
    Claim("lengths", lambda context: check_outside(context.manifest), WHOLE),
    Claim("lengths of the base", _lengths_of_base, needs("whole", "model")),
    Claim("live model", live_model, needs("whole", "model", "base"), live_cost),
)

GRAPH_CLAIMS: Sequence[GraphClaim] = (
    GraphClaim("outputs", run_outputs, cost=lambda context, graph: len(trials(context.plan, graph, context.planned))),
    GraphClaim("golden parts", _golden_parts),
    GraphClaim("rows of a batch", _rows_apart, WHOLE, lambda context, graph: len(_mixed(context, graph))),
    GraphClaim("fan-out", _fan_out, WHOLE, applies=lambda graph: VARIANTS[graph.variant].by_text),
    GraphClaim("padding", lambda context, _: check_proofs(context.bundle), needs("base"), applies=_is_main),
    GraphClaim("swap", _swaps, WHOLE, lambda context, _: len(swaps(context.plan.names)), _is_main),
    GraphClaim("row order", _row_order, WHOLE, _adapter_cost, _is_main),
    GraphClaim("active adapter", _active_adapters, cost=_adapter_cost, applies=_is_main),
    GraphClaim("words", check_words, needs("model", "words", "base", "slots"), word_cost, _is_main),
    GraphClaim("member weights", _member_weights),
    GraphClaim("memory", _close),
)

LAST_CLAIMS: Sequence[Claim] = (
    Claim("shapes", check_coverage, needs("whole", "model")),
    Claim("repeated run", repeats, needs("whole", "model")),
    Claim("smallest case", find_smallest, needs("whole", "model")),
    Claim("outputs", of_outputs),
    Claim("sites", _sites, needs("whole", "slots"), lambda context: len(context.plan.adapters)),
    Claim("nodes", _nodes, needs("whole", "model"), lambda context: len(_walked(context))),
    Claim("other runtimes", _other_runtimes, cost=lambda context: len(context.plan.runtimes)),
    Claim("golden parts", lambda context: check_parts(context.parts)),
    Claim("separation", lambda context: check_separation(context.manifest.adapters, context.plan.adapters)),
    Claim(
        "recorded runs",
        lambda context: compare_runs(context.manifest, context.plan.names, context.digests),
        needs("written"),
    ),
    Claim("golden texts", _texts),
    Claim("golden chats", _chats),
    Claim("golden batches", _batches),
    Claim("golden media", _media),
    Claim("golden generation", _generation),
    Claim("precision", _precision, cost=_precision_cost),
    Claim("manifest", _manifest, needs("written")),
    Claim("cut", lambda context: check_cut(context.bundle), needs("written", "fanout")),
    Claim(
        "slots",
        lambda context: check_slots(context.bundle, context.plan.adapters, context.user_adapters),
        needs("written", "whole"),
    ),
    Claim("constants", _tensors, needs("written", "whole", "source")),
    Claim(
        "providers",
        lambda context: check_providers(context.bundle, context.plan.golden, context.plan.providers),
        needs("written", "whole", "slots"),
        lambda context: 1 + len(context.plan.providers),
    ),
    Claim("left out", _left_out, needs("written", "whole")),
)
