"""`adapter-export pack`: plain tensors of any framework become an adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import adapter_export as ae
from adapter_export.api.adapters.kinds import packed_options
from adapter_export.cli.options import AdapterFolder, Force, Json, command
from adapter_export.option import Option, OptionsOf
from adapter_export.safe_io.output import Output


@command(
    "adapter-export pack weights.safetensors --kind houlsby --activation relu --base model.pt -o a",
    "adapter-export pack w.safetensors --kind pfeiffer --activation gelu --base model.onnx \\",
    "    --labels negative,positive --pooling first -o sentiment",
    "adapter-export pack w.safetensors --kind lora --alpha 16 --base model.pt -o b",
    like=ae.pack,
    sections={
        "kind": tuple(OptionsOf(packed_options).defaults()),
        "head": (
            *("labels", "task", "pooling", "head_activation", "l2_normalise", "thresholds"),
            *("input", "max_tokens", "truncation", "prefix"),
        ),
    },
)
def pack(
    weights: Path,
    *,
    base: Annotated[Path, Option("The model that the adapter was trained on.", "MODEL")],
    name: Annotated[str | None, "What users will call it; the output's name if not given."] = None,
    output: AdapterFolder,
    force: Force = False,
    as_json: Json = False,
    **options: Any,
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
    from adapter_export.cli.bases import Noted, report_adapter

    Output(output, force).ensure_writable(folder=True, sources=[weights, base])
    reporter = Noted()
    made = ae.pack(weights, base, name=name or output.resolve().name, reporter=reporter, **options)
    ae.save(made, output, force=force)
    report_adapter(made, reporter.notes, output, as_json)
