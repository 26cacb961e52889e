"""Bases exported to ONNX: the numbers of torch at any shape, and the names of the base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from archives import Small
from onnxscript import rewriter
from small_encoder import load_encoder
from torch import Tensor, nn
from torch.onnx._internal.exporter import _fx_passes

from adapter_export.errors import BaseModelError, OutputExistsError, WriteError
from adapter_export.onnx_backend.base.flow import flow_graph as onnx_flow
from adapter_export.onnx_backend.base.onnx_base import FINGERPRINT_KEY, LENGTHS_KEY, open_onnx
from adapter_export.onnx_backend.steps import Steps
from adapter_export.sites.discover import discover
from adapter_export.torch_backend.base.to_onnx import OPSET, export_onnx, to_onnx
from adapter_export.torch_backend.base.torch_base import TorchBase, base_of, load_base, save_base
from adapter_export.torch_backend.fx_view import flow_graph
from adapter_export.torch_backend.torch_runner import node_values


@pytest.fixture(scope="module")
def minilm(minilm_archive: Path) -> TorchBase:
    return load_base(minilm_archive)


@pytest.fixture(scope="module")
def session(minilm_graph: Path) -> ort.InferenceSession:
    return ort.InferenceSession(minilm_graph, providers=["CPUExecutionProvider"])


def draw(base: TorchBase, rows: int, tokens: int) -> dict[str, Tensor]:
    torch.manual_seed(rows * 1000 + tokens)
    mask = torch.ones(rows, tokens, dtype=torch.int64)
    mask[-1, tokens // 2 + 1 :] = 0
    limits = {record.name: record.limit for record in base.inputs}
    return {name: mask if limit is None else torch.randint(0, limit, (rows, tokens)) for name, limit in limits.items()}


def assert_equal(base: TorchBase, session: ort.InferenceSession, inputs: dict[str, Tensor], atol: float) -> None:
    with torch.inference_mode():
        expected = base.run(inputs)
    found = session.run(list(expected), {name: tensor.numpy() for name, tensor in inputs.items()})
    for name, value in zip(expected, found, strict=True):
        assert np.isfinite(value).all()
        np.testing.assert_allclose(value, expected[name].detach().numpy(), rtol=0, atol=atol, err_msg=name)


@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (3, 7), (2, 130), (1, 512)])
def test_minilm_computes_what_torch_computes(
    minilm: TorchBase, session: ort.InferenceSession, shape: tuple[int, int]
) -> None:
    assert_equal(minilm, session, draw(minilm, *shape), 1e-5)


def test_minilm_has_the_names_of_the_base(minilm: TorchBase, minilm_graph: Path) -> None:
    base = open_onnx(minilm_graph)
    assert (base.inputs, base.outputs) == (minilm.inputs, minilm.outputs)
    assert base.fingerprint == minilm.fingerprint
    assert [site.name for site in base.sites.sublayers] == [
        site.name for site in discover(flow_graph(minilm.flat)).sublayers
    ]


def test_minilm_is_small_beside_its_weights(minilm: TorchBase, minilm_graph: Path) -> None:
    assert minilm_graph.stat().st_size < 500_000
    assert sorted(file.name for file in minilm_graph.parent.iterdir()) == ["base.bin", "model.onnx"]
    model = onnx.load(minilm_graph, load_external_data=False)
    assert model.ir_version <= 10
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", OPSET)]
    assert [entry.key for entry in model.metadata_props] == [FINGERPRINT_KEY, LENGTHS_KEY]
    keys = {entry.key for node in model.graph.node for entry in node.metadata_props}
    assert keys == {"pkg.torch.onnx.name_scopes", "pkg.torch.onnx.class_hierarchy"}
    assert b"site-packages" not in minilm_graph.read_bytes()
    weights = sum(tensor.numel() * 4 for tensor in minilm.program.parameters())
    assert weights <= (minilm_graph.parent / "base.bin").stat().st_size < weights * 1.01


def test_exported_axes_have_no_internal_torch_names(minilm_graph: Path) -> None:
    names = {
        str(dim.value)
        for node in ir.load(minilm_graph).graph
        for value in node.outputs
        if value.shape is not None
        for dim in value.shape
        if isinstance(dim, ir.SymbolicDim)
    }
    assert {"batch", "sequence"} <= names
    assert not [name for name in names if name.startswith("s") and name != "sequence"]


@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (2, 130)])
def test_exported_bert_matches_torch_with_all_inputs(
    tiny_bert: TorchBase, tiny_session: ort.InferenceSession, shape: tuple[int, int]
) -> None:
    assert_equal(tiny_bert, tiny_session, draw(tiny_bert, *shape), 1e-5)


@pytest.fixture(scope="module")
def tiny_bert(tiny_bert_archive: Path) -> TorchBase:
    return load_base(tiny_bert_archive)


@pytest.fixture(scope="module")
def tiny_session(tiny_bert: TorchBase, tmp_path_factory: pytest.TempPathFactory) -> ort.InferenceSession:
    path = tmp_path_factory.mktemp("tiny") / "model.onnx"
    export_onnx(tiny_bert, path)
    return ort.InferenceSession(path, providers=["CPUExecutionProvider"])


def test_an_export_shares_no_names_with_the_next_one(tiny_bert: TorchBase) -> None:
    """A program is converted once per process; changes of one model do not affect another."""
    first = to_onnx(tiny_bert)
    expected = ir.to_proto(first).SerializeToString()
    for value in (*first.graph.inputs, *first.graph.outputs, *first.graph.initializers.values()):
        value.name = f"{value.name}.changed"
    for node in list(first.graph)[-3:]:
        node.metadata_props.clear()
    second = to_onnx(tiny_bert)
    assert ir.to_proto(second).SerializeToString() == expected != ir.to_proto(first).SerializeToString()


class Awkward(nn.Module):
    """Outputs that are an input, a weight, one value twice, and names that the exporter gives to other values."""

    def __init__(self) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.randn(4))
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        h = self.linear(x) + self.x
        return {"x": x, "linear": h + y, "same": h, "again": h, "add": h * 2, "weight": self.x}


def test_exported_output_names_equal_those_of_the_base(tmp_path: Path) -> None:
    torch.manual_seed(0)
    save_base(Awkward(), (torch.randn(1, 4), torch.randn(1, 4)), tmp_path / "model.pt")
    base = load_base(tmp_path / "model.pt")
    export_onnx(base, tmp_path / "model.onnx")
    session = ort.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    names = ["x_output", "linear", "same", "again", "add", "weight"]
    assert [output.name for output in session.get_outputs()] == names
    inputs = {"x": torch.randn(3, 4), "y": torch.randn(3, 4)}
    assert_equal(base, session, inputs, 1e-6)
    torch.testing.assert_close(base.run(inputs)["add"], base.run(inputs)["same"] * 2)


class Spelled(nn.Module):
    """Ops that are rewritten for the exporter, one of them as an output."""

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        first, second, rest = x.chunk(3, -1)
        both = (first > 0).__and__(y[:, :2] > 0).to(torch.float32) + torch.min(first, second)
        joined = torch.cat([both.to(torch.int64).to("cpu"), rest.long()], -1).unflatten(-1, (3, 1)).flatten(1)
        left = 1.0 - (1 - (x > 0).long()) * torch.rsub(x, y, alpha=2) - torch.rsub(y, 1.5, alpha=3)
        weights = torch._weight_norm(y, x[:1], 1).view_as(x) * nn.functional.adaptive_avg_pool1d(x, 1)
        return {"joined": joined.to(torch.int64), "both": both.float(), "left": left, "weights": weights}


class SpelledImages(nn.Module):
    """Rewritten ops on images, and those of a router of experts."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(1, 4, 2, padding="valid")
        self.norm = nn.BatchNorm2d(4).eval()
        self.norm.running_mean, self.norm.running_var = torch.randn(4), torch.rand(4) + 0.5

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        weights, places = (x[:, :1].expand_as(y) * y).topk(2, -1)
        weights /= weights.sum(-1, keepdim=True)
        images = self.norm(self.convolution(x[:, None, :, None] * y[:1].broadcast_to(1, 1, 5, 5)))
        pooled = nn.functional.adaptive_avg_pool2d(images, (1, 1)) + images
        return {"weights": weights * 2, "places": places + 1, "pooled": pooled}


class Mixed(nn.Module):
    """Ops on numbers of several types, which torch promotes and ONNX does not."""

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        signs = (x > 0).long()
        return {"sums": signs + y * 2, "halves": signs / 2, "powers": (signs + 1.5) ** signs, "more": x > signs}


class Reordered(nn.Module):
    """Transposes values for a view, as attention does."""

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        return {"flat": torch.stack([x, y], -1).transpose(1, 2).contiguous().view(-1, 10) * 2}


class WrittenFresh(nn.Module):
    """Writes into values that nothing else sees, and reads them before and after."""

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        sums = x * 2
        before = sums + 1
        sums.add_(y).mul_(x)
        return {"before": before, "after": sums + 0, "view": sums[:, :2] - 1}


class Written(nn.Module):
    """Writes into a view of a value that it reads later."""

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        copy = x * 1
        view = copy[:, :2]
        view.add_(y[:, :2]).clamp_(min=0)
        return {"copy": copy * 2, "view": view + 1}


class WrittenNarrow(nn.Module):
    """Adds wider numbers to narrow ones, which stay narrow."""

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        return {"sums": (x * 2).add_(y.double()) * 3}


@pytest.mark.parametrize(
    ("module", "traces"),
    [
        (Spelled(), 0),
        (SpelledImages().eval(), 0),
        (Mixed(), 0),
        (Reordered(), 0),
        (WrittenFresh(), 0),
        (Written(), 1),
        (WrittenNarrow(), 1),
    ],
)
def test_only_unsupported_modules_are_traced_again(
    module: nn.Module, traces: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    inputs = {"x": torch.randn(3, 5) * 2, "y": torch.randn(3, 5)}
    base = base_of(module, {name: value[:2] for name, value in inputs.items()})
    decompose, seen = torch.export.ExportedProgram.run_decompositions, []

    def counted(program: torch.export.ExportedProgram, *args: object) -> torch.export.ExportedProgram:
        seen.append(program)
        return decompose(program, *args)

    monkeypatch.setattr(torch.export.ExportedProgram, "run_decompositions", counted)
    export_onnx(base, tmp_path / "model.onnx")
    assert len(seen) == traces
    assert_equal(base, ort.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"]), inputs, 1e-6)
    for name, expected in module(**inputs).items():
        torch.testing.assert_close(base.run(inputs)[name], expected)


class Convolved(nn.Module):
    """Convolutions with kernels of one to three axes, a grouped one, and a transposed one."""

    def __init__(self) -> None:
        super().__init__()
        self.volume = nn.Conv3d(3, 8, (2, 4, 4))
        self.grouped = nn.Conv1d(8, 6, 5, groups=2)
        self.transposed = nn.ConvTranspose1d(6, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.transposed(self.grouped(self.volume(x).flatten(2)))


def test_terms_of_convolutions_are_counted_in_both_views(tmp_path: Path) -> None:
    base = base_of(Convolved(), (torch.randn(1, 3, 4, 8, 8),))
    export_onnx(base, tmp_path / "model.onnx")
    flows = flow_graph(base.flat), onnx_flow(ir.load(tmp_path / "model.onnx"))
    found = [[node.terms for node in flow.nodes if node.kind == "convolution"] for flow in flows]
    assert found == [[3 * 2 * 4 * 4, 4 * 5, 6 * 3]] * 2


class Decomposed(nn.Module):
    """Ops that torch decomposes into others of this module, and one that writes into a view."""

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        near = nn.functional.cosine_similarity(x, y, dim=-1)
        square = x.mT @ x
        square.mT.add_(torch.ones(5, 5).tril())
        return {"near": near / 2 * 3, "square": square * 2, "halves": x / 2 + y * 3, "sums": (x / 4).clamp_(min=0)}


class WeightNormed(nn.Module):
    """A weight norm, which becomes a quotient for ONNX, and a sum, which is needed to find sites."""

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        return {"weights": torch._weight_norm(y, x[:1], 1) * 2, "sums": torch.addcdiv(x, y, y.abs() + 1) * 2}


class Unfolded(nn.Module):
    """An op that becomes a gather and a transpose, which merges with the next."""

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        return {"windows": torch.stack([x, y, x, y], -1).unfold(1, 3, 2).transpose(1, 2) + 1}


@pytest.mark.parametrize(("module", "fewest"), [(Decomposed(), 8), (WeightNormed(), 5), (Unfolded(), 2)])
def test_a_name_of_the_graph_of_torch_is_that_of_its_value(module: nn.Module, fewest: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    inputs = {"x": torch.randn(3, 5), "y": torch.randn(3, 5)}
    base = base_of(module, {name: value[:2] for name, value in inputs.items()})
    model, arrays = to_onnx(base), {name: value.numpy() for name, value in inputs.items()}
    names = {node.name for node in base.flat.graph.nodes if node.op == "call_function"}
    steps = Steps(model, tmp_path)
    own = [value for node in model.graph for value in node.outputs if steps.names.get(value.name or "") in names]
    model.graph.outputs.extend(value for value in own if value not in model.graph.outputs)
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    found = session.run([value.name for value in own], arrays)
    expected = node_values(base, arrays, names)
    for value, array in zip(own, found, strict=True):
        name = steps.names[value.name or ""]
        np.testing.assert_allclose(array, expected[name], rtol=0, atol=1e-6, err_msg=name)
    assert len(own) >= fewest, [value.name for value in own]


class Routed(nn.Module):
    """Computes the rows selected by a mask, whose number is not in any shape."""

    def forward(self, x: Tensor) -> Tensor:
        found, chosen = torch.zeros_like(x), x[:, 0] > 0
        found[chosen] = x[chosen] * 2
        return found


class Counting(nn.Module):
    """Reads the length of an axis, and has an op that torch decomposes."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.cosine_similarity(x, x * x) + torch.arange(x.shape[0])


def test_a_model_is_the_same_each_time() -> None:
    base = base_of(Routed(), (torch.randn(3, 5),))
    first, *others = [serialised(base) for _ in range(3)]
    assert others == [first, first]


def test_skipping_nodes_with_other_operators_changes_nothing(
    tiny_bert: TorchBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = serialised(tiny_bert)
    for rule in rewriter._DEFAULT_REWRITE_RULES:
        assert rule._matcher.pattern is rule._matcher._matcher.pattern
        monkeypatch.setattr(rule, "_matcher", rule._matcher._matcher)
    assert serialised(tiny_bert) == model


def serialised(base: TorchBase) -> bytes:
    return ir.to_proto(to_onnx(base)).SerializeToString(deterministic=True)


def test_numbers_that_torch_counts_are_not_in_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch may continue its numbering from one conversion to the next, as for Speech2Text."""
    module, inputs = Counting(), (torch.randn(3, 5),)
    decompose, seen, first = _fx_passes.decompose_with_registry, [], serialised(base_of(module, inputs))

    def counting_on(*args: Any) -> torch.export.ExportedProgram:
        program = decompose(*args)
        for node in program.graph.nodes:
            if node.name.startswith("sym_size_int"):
                seen.append(node.name)
                node.name = f"sym_size_int_{len(seen) + 99}"
        return program

    monkeypatch.setattr(_fx_passes, "decompose_with_registry", counting_on)
    assert serialised(base_of(module, inputs)) == first, "a different program, which is converted again"
    assert seen


def test_export_leaves_the_base_unchanged_and_prints_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    base = load_encoder(tmp_path / "model.pt")
    inputs = draw(base, 2, 5)
    before = base.run(inputs)
    capfd.readouterr()
    models = [to_onnx(base), to_onnx(base)]
    assert len(models[0].graph) == len(models[1].graph)
    assert all(torch.equal(before[name], value) for name, value in base.run(inputs).items())
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""


@pytest.fixture
def small(tmp_path: Path) -> TorchBase:
    save_base(Small(), (torch.ones(1, 4),), tmp_path / "model.pt")
    return load_base(tmp_path / "model.pt")


@pytest.mark.parametrize("taken", ["model.onnx", "weights.bin"])
def test_existing_files_are_not_overwritten(small: TorchBase, taken: str, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / taken).write_text("mine")
    with pytest.raises(OutputExistsError, match=taken):
        export_onnx(small, folder / "model.onnx", data="weights.bin")
    assert [(file.name, file.read_text()) for file in folder.iterdir()] == [(taken, "mine")]


def test_existing_files_are_replaced_with_force(small: TorchBase, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "model.onnx").write_text("mine")
    export_onnx(small, folder / "model.onnx", data="weights.bin", force=True)
    assert sorted(file.name for file in folder.iterdir()) == ["model.onnx", "weights.bin"]
    session = ort.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    assert_equal(small, session, {"x": torch.randn(3, 4)}, 1e-6)


def test_a_write_that_fails_leaves_nothing_behind(
    small: TorchBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "touch", fail)
    with pytest.raises(WriteError, match="No space left"):
        export_onnx(small, tmp_path / "out" / "model.onnx")
    assert [file.name for file in tmp_path.iterdir()] == ["model.pt"]


class WithoutOnnx(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.eigvalsh(x)


def test_an_op_that_onnx_lacks_is_named(tmp_path: Path) -> None:
    save_base(WithoutOnnx(), (torch.eye(3)[None],), tmp_path / "model.pt")
    with pytest.raises(BaseModelError, match=r"cannot export the base to ONNX.*eigh"):
        export_onnx(load_base(tmp_path / "model.pt"), tmp_path / "model.onnx")
    assert [file.name for file in tmp_path.iterdir()] == ["model.pt"]
