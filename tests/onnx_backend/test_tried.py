"""Facts about inputs that only a run shows: equal lengths under two names, and the maximum length."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from exported_bases import by_older_exporter
from heard import Heard
from onnx import numpy_helper, parser
from small_models import small
from tiny_onnx import MASK, VOCABULARY, random_adapter, save_tiny, tiny_model, token_inputs

import adapter_export as ae
from adapter_export.errors import RequestError
from adapter_export.format.lengths import Lengths
from adapter_export.format.manifest import InputRecord
from adapter_export.graph.kinds import pfeiffer
from adapter_export.onnx_backend.base.length_probe import axes, equal_axes, length_limits
from adapter_export.onnx_backend.base.onnx_base import open_onnx
from adapter_export.onnx_backend.onnx_runner import CutRunner

POSITIONS = """
    real = Cast <to = 1> (attention_mask)
    missing = Sub(one, real)
    masked = Mul(missing, lowest)
    shape = Shape(input_ids)
    second = Constant <value = int64 {1}> ()
    zero = Constant <value = int64 {0}> ()
    tokens = Gather(shape, second)
    range = Range(zero, tokens, second)
    at = Gather(positions, range)
    penalty = Add(masked, at)
    axis = Constant <value = int64[1] {1}> ()
    bias = Unsqueeze(penalty, axis)
"""


COUNTED = """
    real = Cast <to = 1> (attention_mask)
    missing = Sub(one, real)
    masked = Mul(missing, lowest)
    second = Constant <value = int64 {{1}}> ()
    padding = Constant <value = int64 {{{padding}}}> ()
    same = Equal(input_ids, padding)
    other = Not(same)
    counts = Cast <to = 7> (other)
    counted = CumSum(counts, second)
    shown = Mul(counted, counts)
    places = Add(shown, padding)
    at = Gather(positions, places)
    penalty = Add(masked, at)
    axis = Constant <value = int64[1] {{1}}> ()
    bias = Unsqueeze(penalty, axis)
"""
"""Positions counted over the non-padding tokens, as in RoBERTa: `padding + cumsum(input_ids != padding)`."""


def with_positions(count: int, nodes: str = POSITIONS) -> onnx.ModelProto:
    """Return a transformer whose position table is added to the attention scores."""
    model = tiny_model(mask=nodes)
    table = np.random.default_rng(0).standard_normal(count).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(table, "positions"))
    return model


def parsed(inputs: str, body: str) -> tuple[ir.Model, list[InputRecord]]:
    """Return a graph and its float inputs."""
    text = f"""<ir_version: 8, opset_import: ["" : 17]> g ({inputs}) => (float[a, b, c] y) {{ {body} }}"""
    model = ir.from_proto(parser.parse_model(text))
    return model, [InputRecord(value.name or "", "float32", axes(value), "values") for value in model.graph.inputs]


@pytest.mark.parametrize("named", [True, False])
def test_one_length_under_two_names_is_one_axis(tmp_path: Path, named: bool) -> None:
    """tf2onnx writes inputs of Keras transformers this way."""
    model = tiny_model()
    for number, value in enumerate(model.graph.input):
        for place, dim in enumerate(value.type.tensor_type.shape.dim):
            dim.dim_param = f"unk__{2 * number + place}" if named else ""
    base = open_onnx(save_tiny(tmp_path, model))
    one, other = base.inputs
    assert one.axes == other.axes == (("unk__0", "unk__1") if named else ("input_ids.0", "input_ids.1"))
    twin = "unk__3" if named else "attention_mask.1"
    assert f"axis `{twin}` always equals `{one.axes[1]}`, found by test runs" in base.notes
    bundle = ae.build(tmp_path / "tiny.onnx", [random_adapter("a", pfeiffer(), base)], tmp_path / "bundle")
    report = ae.check(bundle, against=tmp_path / "tiny.onnx", quick=True)
    assert report.passed
    assert {record.axes for record in bundle.manifest.inputs} == {one.axes}


def test_lengths_that_may_differ_stay_apart(tmp_path: Path) -> None:
    inputs = "float[n, s, 4] x, float[m, t, 4] memory, float[k, u, 4] more"
    model, records = parsed(
        inputs, "k1 = Transpose <perm = [0, 2, 1]> (memory) p = MatMul(x, k1) v = Add(memory, more) y = MatMul(p, v)"
    )
    assert equal_axes(model, tmp_path, records) == {"m": "n", "k": "n", "u": "t"}
    apart, records = parsed("float[n, s, 4] x, float[m, t, 4] other", "y = Neg(x) z = Neg(other)")
    assert equal_axes(apart, tmp_path, records) == {}


@pytest.mark.parametrize("count", [1, 24, 65, 66, 300])
def test_the_longest_input_is_that_of_the_table_of_positions(tmp_path: Path, count: int) -> None:
    base = open_onnx(save_tiny(tmp_path, with_positions(count)))
    assert length_limits(base.model, base.folder, base.inputs) == {"tokens": (1, count)}


@pytest.mark.parametrize("padding", [0, 1, VOCABULARY - 2, VOCABULARY - 1])
def test_positions_of_padding_do_not_count(tmp_path: Path, padding: int) -> None:
    model = with_positions(padding + 1 + 24, COUNTED.format(padding=padding))
    base = open_onnx(save_tiny(tmp_path, model))
    assert length_limits(base.model, base.folder, base.inputs) == {"tokens": (1, 24)}


@pytest.mark.extended
@pytest.mark.parametrize("name", ["MPNet", "Roberta"])
def test_models_that_count_positions_are_built_from_the_older_exporter(tmp_path: Path, name: str) -> None:
    class Hidden(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = small(name, add_pooling_layer=False)

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            hidden: torch.Tensor = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
            return hidden

    ids = torch.randint(5, 90, (2, 7))
    axes = {key: {0: "batch", 1: "tokens"} for key in ("input_ids", "attention_mask", "out")}
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    base = by_older_exporter(Hidden().eval(), inputs, axes, tmp_path)
    bundle = ae.build(tmp_path / "model.onnx", [random_adapter("a", pfeiffer(), base)], tmp_path / "bundle")
    # 40 positions; rows 0 and 1 are for padding and before it
    assert bundle.manifest.lengths == {"tokens": Lengths(1, 38)}
    assert ae.check(bundle, against=tmp_path / "model.onnx", quick=True).passed


def test_more_tokens_than_positions_are_refused_with_their_number(tmp_path: Path) -> None:
    path = save_tiny(tmp_path, with_positions(26, COUNTED.format(padding=1)))
    adapter = random_adapter("a", pfeiffer(), open_onnx(path))
    with pytest.raises(RequestError, match=r"expected at most 24 tokens.*`max_tokens=24`"):
        ae.build(path, [adapter], tmp_path / "bundle", max_tokens=64)
    assert not (tmp_path / "bundle").exists()


def test_a_graph_without_limit_has_none(tmp_path: Path) -> None:
    base = open_onnx(save_tiny(tmp_path))
    assert length_limits(base.model, base.folder, base.inputs) == {"tokens": (1, None)}


def test_the_shortest_input_is_found(tmp_path: Path) -> None:
    body = "fifth = Constant <value = int64 {4}> () f = Gather <axis = 1> (x, fifth) y = Neg(f)"
    model, records = parsed("float[n, s, 4] x", body)
    assert length_limits(model, tmp_path, records) == {"s": (5, None)}


def test_a_graph_that_takes_no_short_input_is_built(tmp_path: Path) -> None:
    """Audio models need some samples for the convolutions in front."""
    fifth = "four = Constant <value = int64 {4}> () fifth = Gather <axis = 1> (attention_mask, four)"
    path = save_tiny(tmp_path, tiny_model(mask=MASK + fifth, more=", int64[batch] fifth"))
    bundle = ae.build(path, [random_adapter("a", pfeiffer(), open_onnx(path))], tmp_path / "bundle")
    assert bundle.manifest.lengths == {"tokens": Lengths(5)}
    assert ae.check(bundle, against=path, quick=True).passed
    with pytest.raises(RequestError, match="5 or more"):
        bundle.session().run(token_inputs(4, 3), None)


def test_maximum_length_is_detected_for_few_positions(tmp_path: Path) -> None:
    path = save_tiny(tmp_path, with_positions(24))
    adapter = random_adapter("a", pfeiffer(), open_onnx(path))
    heard = Heard()
    bundle = ae.build(path, [adapter], tmp_path / "bundle", reporter=heard)
    assert "length of axis `tokens`: 1 to 24, found by test runs" in heard.steps
    assert bundle.manifest.lengths == {"tokens": Lengths(1, 24)}
    assert "batch3_tokens24" in bundle.manifest.golden.cases
    assert ae.check(bundle, against=path).passed
    inputs = token_inputs(24, 3)
    found = bundle.session().run(inputs, None)["hidden"]
    np.testing.assert_allclose(found, CutRunner(open_onnx(path)).run(inputs, None)["hidden"], rtol=0, atol=1e-5)
