"""A small bundle whose base is an ONNX graph, so that nothing here needs torch."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from building import build_bundle
from kept import kept
from onnx import numpy_helper, parser, shape_inference
from tiny_onnx import random_adapter
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from adapter_export.dtypes import AdapterPrecision
from adapter_export.format.lengths import Lengths
from adapter_export.format.manifest import Manifest
from adapter_export.graph.adapter import Adapter
from adapter_export.graph.compose import weighted_fusion
from adapter_export.graph.kinds import KINDS, BottleneckOptions
from adapter_export.numerics.sample_inputs import input_cases
from adapter_export.onnx_backend.base.onnx_base import LENGTHS_KEY, OnnxBase, open_onnx
from adapter_export.onnx_backend.onnx_runner import CutRunner

WIDTH, INNER, WORDS, LAYERS = 16, 32, 20, 2
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
OTHERS = "a who wrote it was good bad dull film book the and not ? . moon"
LENGTHS = (Lengths(16, 16), Lengths(8, 40, 8, (24,)))
"""Lengths of bases that support only some."""

_LAYER = """
    q{n} = MatMul({x}, q{n}_weight)
    k{n} = MatMul({x}, k{n}_weight)
    v{n} = MatMul({x}, v{n}_weight)
    kt{n} = Transpose <perm = [0, 2, 1]> (k{n})
    scores{n} = MatMul(q{n}, kt{n})
    masked{n} = Add(scores{n}, mask_bias)
    weights{n} = Softmax <axis = -1> (masked{n})
    mixed{n} = MatMul(weights{n}, v{n})
    out{n} = MatMul(mixed{n}, o{n}_weight)
    attention{n} = Add(out{n}, o{n}_bias)
    sum{n} = Add({x}, attention{n})
    norm{n} = LayerNormalization <axis = -1> (sum{n}, norm{n}_weight, norm{n}_bias)
    up{n} = MatMul(norm{n}, up{n}_weight)
    wide{n} = Add(up{n}, up{n}_bias)
    act{n} = Gelu(wide{n})
    down{n} = MatMul(act{n}, down{n}_weight)
    ffn{n} = Add(down{n}, down{n}_bias)
    total{n} = Add(norm{n}, ffn{n})
    {y} = LayerNormalization <axis = -1> (total{n}, final{n}_weight, final{n}_bias)
"""


NAMES = ("ids", "mask")


def _base_text(names: tuple[str, str]) -> str:
    ids, mask = names
    layers = "".join(
        _LAYER.format(n=n, x=f"x{n}", y="hidden" if n == LAYERS - 1 else f"x{n + 1}") for n in range(LAYERS)
    )
    return f"""
    <ir_version: 9, opset_import: ["" : 20]>
    base (int64[batch, tokens] {ids}, int64[batch, tokens] {mask}) => (float[batch, tokens, {WIDTH}] hidden) {{
    mask_number = Cast <to = 1> ({mask})
    one = Constant <value = float {{1}}> ()
    low = Constant <value = float {{-10000}}> ()
    axis = Constant <value = int64[1] {{1}}> ()
    padding = Sub(one, mask_number)
    bias = Mul(padding, low)
    mask_bias = Unsqueeze(bias, axis)
    x0 = Gather(words, {ids})
    {layers}
    }}
    """


def _weights(random: np.random.Generator) -> dict[str, np.ndarray]:
    shapes: dict[str, tuple[int, ...]] = {"words": (WORDS, WIDTH)}
    for n in range(LAYERS):
        shapes |= {f"{name}{n}_weight": (WIDTH, WIDTH) for name in "qkvo"}
        shapes |= {f"up{n}_weight": (WIDTH, INNER), f"down{n}_weight": (INNER, WIDTH)}
        shapes |= {f"o{n}_bias": (WIDTH,), f"up{n}_bias": (INNER,), f"down{n}_bias": (WIDTH,)}
        shapes |= {f"{name}{n}_{part}": (WIDTH,) for name in ("norm", "final") for part in ("weight", "bias")}
    made = {name: random.normal(0, 0.2, shape).astype(np.float32) for name, shape in shapes.items()}
    return {name: value + 1 if name.startswith(("norm", "final")) else value for name, value in made.items()}


def make_adapter(name: str, kind: str, activation: str, classes: int, base: OnnxBase, scaling: float = 1.0) -> Adapter:
    """An adapter with random weights at every site that its kind is for."""
    options = BottleneckOptions(activation=activation, scaling=scaling)
    return random_adapter(name, KINDS[kind](options), base, bottleneck=4, labels="abcdef"[:classes])


@dataclass(frozen=True)
class Built:
    """A bundle and its sources."""

    folder: Path
    model: Path
    base: OnnxBase
    manifest: Manifest


def build_small(
    folder: Path,
    variants: Sequence[str] | None = None,
    names: tuple[str, str] = NAMES,
    tokenizer: str | None = None,
    compose: Callable[..., Sequence[Adapter]] = lambda *_: (),
    bake: Sequence[str] = (),
    lengths: Lengths | None = None,
    *,
    counts_padding: bool = False,
    precisions: Mapping[str, AdapterPrecision] | None = None,
    checksums: bool = False,
) -> Built:
    """Two layers with random weights; `topic` is a Houlsby adapter, `tone` and `mood` are Pfeiffer adapters that fit
    the same slots, scaled by 2; each has a head.

    Args:
        folder: where the base and the bundle go.
        variants: the graphs of the bundle.
        names: those of the two inputs.
        tokenizer: a `tokenizer.json` of at most `WORDS` tokens.
        compose: makes further adapters of these three.
        bake: the adapters with a graph of their own.
        lengths: those that the base takes, as `capture` writes them: of a fixed one the axis is a number.
        counts_padding: the last layer attends to padding, too.
        precisions: the precision of adapter files, by name.
        checksums: the graphs show checksums of their slots.
    """
    text = _base_text(names)
    if counts_padding:
        text = text.replace(f"Add(scores{LAYERS - 1}, mask_bias)", f"Identity(scores{LAYERS - 1})")
    if lengths is not None and lengths.fixed:
        text = text.replace("tokens", str(lengths.minimum))
    model = parser.parse_model(text)
    if lengths is not None and not lengths.fixed:
        model.metadata_props.add(
            key=LENGTHS_KEY, value=json.dumps({"lengths": {"tokens": asdict(lengths)}, "pads": True})
        )
    weights = _weights(np.random.default_rng(0))
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in weights.items())
    onnx.save(shape_inference.infer_shapes(model), folder / "base.onnx")
    base = open_onnx(folder / "base.onnx")
    adapters = [
        make_adapter("topic", "houlsby", "gelu", 3, base),
        make_adapter("tone", "pfeiffer", "relu", 2, base, 2.0),
        make_adapter("mood", "pfeiffer", "relu", 2, base, 2.0),
    ]
    shapes = None if lengths else [{"batch": 1, "tokens": 65}, {"batch": 3, "tokens": 7}]
    manifest = build_bundle(
        base,
        [*adapters, *compose(*adapters)],
        folder / "bundle",
        references=CutRunner(base),
        cases=input_cases(base.inputs, seed=1, lengths=base.lengths, shapes=shapes),
        tokenizer=tokenizer,
        max_tokens=None if tokenizer is None or lengths else 65,
        variants=variants,
        bake=bake,
        precisions=precisions or {},
        checksums=checksums,
    )
    return Built(folder / "bundle", folder / "base.onnx", base, manifest)


def small_tokenizer() -> str:
    """A `tokenizer.json` of as many words as the base knows."""
    words = {word: number for number, word in enumerate([*SPECIAL, *OTHERS.split()])}
    assert len(words) == WORDS
    made = Tokenizer(models.WordPiece(words, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = [(word, words[word]) for word in ("[CLS]", "[SEP]")]
    made.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=special)
    return str(made.to_str())


def text_bundle(factory: pytest.TempPathFactory) -> Path:
    """The bundle with that tokenizer, in the variants that there are by default."""
    return kept(factory, "small_texts", _write_texts) / "bundle"


def _write_texts(folder: Path) -> None:
    build_small(folder, None, ("input_ids", "attention_mask"), small_tokenizer())


def counted_bundle(factory: pytest.TempPathFactory) -> Path:
    """That bundle of a base which padding changes, with `fused`, a weighted fusion of `topic` and `tone`."""
    return kept(factory, "counted", _write_counted) / "bundle"


def _write_counted(folder: Path) -> None:
    def fuse(topic: Adapter, tone: Adapter, _: Adapter) -> Sequence[Adapter]:
        return [weighted_fusion(topic, tone, name="fused", weights=[0.25, 0.75], head="tone")]

    built = build_small(folder, None, ("input_ids", "attention_mask"), small_tokenizer(), fuse, counts_padding=True)
    assert not built.manifest.padding_neutral
