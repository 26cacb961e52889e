"""`adapter-export pack`: plain tensors of any framework become an adapter."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from adapter_export.cli.kind_options import PACKED, kind_option, kind_options, placed, with_options
from adapter_export.cli.options import (
    PATH,
    check_free,
    examples,
    force_option,
    json_option,
    output_option,
    site_map_option,
    trust_pickle_option,
)
from adapter_export.graph.heads import HeadOptions
from adapter_export.graph.kinds import kind_named
from adapter_export.graph.ops import ACTIVATIONS
from adapter_export.graph.tasks import TASKS

if TYPE_CHECKING:
    from adapter_export.graph.adapter import Adapter
    from adapter_export.graph.tasks import Task


@click.command(
    epilog=examples(
        "adapter-export pack weights.safetensors --kind houlsby --activation relu --base model.pt -o a",
        "adapter-export pack w.safetensors --kind pfeiffer --activation gelu --base model.onnx \\",
        "    --labels negative,positive --pooling first -o sentiment",
        "adapter-export pack w.safetensors --kind lora --alpha 16 --base model.pt -o b",
    )
)
@click.argument("weights", type=PATH)
@click.option("--base", type=PATH, required=True, metavar="MODEL", help="The model that the adapter was trained on.")
@kind_option(required=True)
@with_options(PACKED)
@click.option("--labels", metavar="A,B,…", help="The names of the head's classes, in the order of the logits.")
@click.option(
    "--pooling",
    type=click.Choice(("mean", "first")),
    default="mean",
    show_default=True,
    help="What the head reads: the mean over the tokens, or the first token.",
)
@click.option(
    "--task",
    type=click.Choice(TASKS),
    help="What the head is for, if there is one.  [default: sequence_classification]",
)
@click.option(
    "--head-activation",
    type=click.Choice(ACTIVATIONS),
    default="tanh",
    show_default=True,
    help="The function behind each of its dense layers.",
)
@click.option("--l2-normalise", is_flag=True, help="Embeddings of length 1.")
@click.option("--name", help="What users will call it; the output's name if not given.")
@output_option("The adapter folder")
@site_map_option
@force_option
@trust_pickle_option
@json_option
def pack(
    weights: Path,
    base: Path,
    kind: str,
    labels: str | None,
    pooling: str,
    task: Task | None,
    head_activation: str,
    l2_normalise: bool,
    name: str | None,
    output: Path,
    site_map: Path | None,
    force: bool,
    trust_pickle: bool,
    as_json: bool,
    **given: Any,
) -> None:
    """Make an adapter from plain tensors in the safetensors file WEIGHTS.

    The tensors of each site of a bottleneck are `<site>.down.weight` [d, b], `<site>.down.bias` [b], `<site>.up.weight`
    [b, d] and `<site>.up.bias` [d]; the biases may be left out at all sites together. Layer norms are
    `<site>.norm_before.weight` and `.bias` [d], and `<site>.norm_after.…`. LoRA's are `<site>.lora_A.weight` [d_in, r]
    and `<site>.lora_B.weight` [r, d]. `docs/adapters.md` has the tensors of every kind.

    A head is `head.classifier.weight` [d, classes] and `head.classifier.bias` [classes], behind any number of dense
    layers `head.dense_1.weight` [d, e1] and `.bias`; that of an embedding, if it has one, is `head.projection.weight`
    and `.bias`.

    Weights are stored [in, out]; torch's `nn.Linear` stores the transpose. What tensors do not show must be given: the
    activation of bottlenecks, LoRA's alpha, what a head reads and what it is for.

    `adapter-export sites MODEL` lists the names of the sites.
    """
    from adapter_export.api.adapters import with_site_map
    from adapter_export.cli.bases import opened
    from adapter_export.cli.output import warn
    from adapter_export.format.adapter_files import write_adapter
    from adapter_export.format.tensors import read_tensors
    from adapter_export.importers.plain import fitting_kind
    from adapter_export.importers.plain import pack as make

    check_free(output, force=force)
    tensors = read_tensors(weights)
    source = opened(base, site_map, trust_pickle)
    chosen = {name: value for name, value in given.items() if value is not None}
    options = kind_options(kind_named(kind), chosen)
    packed = make(
        tensors,
        placed(fitting_kind(tensors, kind, **options), chosen),
        source.sites.map,
        name=name or output.resolve().name,
        base=source.fingerprint,
        labels=None if labels is None else tuple(label.strip() for label in labels.split(",")),
        task=task,
        look=HeadOptions(pooling, activation=head_activation, l2_normalise=l2_normalise),
    )
    write_adapter(with_site_map(packed.adapter, source), output, force=force)
    for note in packed.notes:
        warn(f"{note}.")
    _report(packed.adapter, packed.notes, output, as_json)


def _report(adapter: Adapter, notes: tuple[str, ...], output: Path, as_json: bool) -> None:
    from adapter_export.cli.output import emit_json, say

    parameters = adapter.cost().parameters
    if as_json:
        emit_json(
            {
                "adapter": str(output),
                "name": adapter.name,
                "kind": adapter.kind,
                "parameters": parameters,
                "sites": list(adapter.placements),
                "labels": None if adapter.head is None else list(adapter.head.labels) or None,
                "notes": list(notes),
            }
        )
        return
    say(
        f"wrote {output}: `{adapter.name}`, {adapter.kind}, {len(adapter.placements)} sites, {parameters:,} parameters."
    )
    say(f"Next: adapter-export build MODEL --adapters {output} -o bundle")
