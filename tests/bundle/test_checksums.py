"""Checksums of slots: golden vectors show exactly which tensors a graph received, in every graph and precision."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from random_kinds import random_of_kind
from small_bundle import Built, build_small, make_adapter
from tampering import edit_adapter
from tiny_onnx import random_adapter, save_tiny, token_inputs

import adapter_export as ae
from adapter_export.bundle.change import add_adapters, remove_adapters
from adapter_export.bundle.proof.proof_plan import Reference, plan_check
from adapter_export.bundle.proof.prove import prove
from adapter_export.format.manifest import (
    VARIANT_NAMES,
    AdapterRecord,
    BankRecord,
    GoldenRecord,
    InputRecord,
    Manifest,
    SlotRecord,
)
from adapter_export.format.manifest_json import read_manifest
from adapter_export.format.tensors import read_tensors
from adapter_export.graph.adapter import Adapter
from adapter_export.graph.compose import adapter_fusion
from adapter_export.graph.kinds import KINDS, BottleneckOptions, Kind, pfeiffer
from adapter_export.onnx_backend.base.onnx_base import OnnxBase, open_onnx
from adapter_export.onnx_backend.model_session import open_session
from adapter_export.onnx_backend.onnx_runner import CutRunner
from adapter_export.onnx_backend.rewrite.bank_graph import bank_rows, bank_tensors, insert_bank
from adapter_export.onnx_backend.rewrite.checksums import add_bank_checksums, add_checksums, checksum
from adapter_export.onnx_backend.rewrite.insert import insert_slots
from adapter_export.onnx_backend.slots import SlotPlan, head_sums, plan_slots, slot_tensors

PRIME = 8388593
ADAPTERS = ("topic", "tone", "mood", "own")
SITE = "layers.1.ffn"

Arrays = dict[str, np.ndarray]


def by_definition(tensor: np.ndarray) -> int:
    """Evaluate the formula of docs/reference/format.md, element by element, in Python integers."""
    total = 0
    for index in product(*map(range, tensor.shape)):
        element = round(min(max(float(tensor[index]), -(2.0**22)), 2.0**22) * 2**30)
        for position in index:
            element *= position + 1
        total += element
    return total % PRIME


@pytest.mark.parametrize("shape", [(), (1,), (7,), (5, 3), (2, 3, 4)])
@pytest.mark.parametrize("size", [1e-12, 0.2, 3e4, 3e38])
def test_the_checksum_is_that_of_the_specification(shape: tuple[int, ...], size: float) -> None:
    tensor = np.asarray(np.random.default_rng(0).uniform(-size, size, shape), np.float32)
    assert checksum(tensor) == by_definition(tensor)
    wider = np.zeros([size + 2 for size in shape], np.float32)
    wider[tuple(map(slice, shape))] = tensor
    assert checksum(wider) == checksum(tensor), "zero-padding changes nothing"


def _kinds() -> dict[str, Kind]:
    """Return every published kind, and some again at other widths."""
    made = {name.replace("+", "p"): maker() for name, maker in KINDS.items()}
    again = {f"{name}_4": made[name].with_widths(b=4) for name in ("houlsby", "compacter")}
    wide = {name: kind.with_widths(b=8) if "b" in kind.components[0].widths else kind for name, kind in made.items()}
    return {**wide, **again, "lora_3": made["lora"].with_widths(r=3)}


@dataclass(frozen=True)
class Planned:
    base: OnnxBase
    adapters: dict[str, Adapter]
    plan: SlotPlan


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> Planned:
    """Plan every kind on one base."""
    base = open_onnx(save_tiny(tmp_path_factory.mktemp("kinds")))
    made = {
        name: random_of_kind(name, kind, base.sites, base.fingerprint, labels=("a", "b"), seed=seed)
        for seed, (name, kind) in enumerate(_kinds().items())
    }
    pair = [random_adapter(name, pfeiffer(BottleneckOptions("relu")), base, bottleneck=3) for name in "ab"]
    made["fused"] = adapter_fusion(*pair, name="fused")  # full matrices, which are one column when idle
    return Planned(base, made, plan_slots(list(made.values()), base.sites))


@pytest.mark.parametrize("optimize", [False, True])
def test_graph_computes_checksums_of_every_kind_of_tensor(planned: Planned, optimize: bool) -> None:
    slots = planned.plan.slots
    model = add_checksums(insert_slots(planned.base, planned.plan), slots, "sums", planned.base.inputs)
    session = open_session(model, planned.base.folder, optimize=optimize)
    for adapter in planned.adapters.values():
        tensors = slot_tensors(planned.plan, adapter)
        tensors = {name: tensor * np.float32(1e4 if "bias" in name else 1) for name, tensor in tensors.items()}
        (found,) = session.run(["sums"], {**token_inputs(4, 3), **tensors})
        expected = [by_definition(tensors[slot.name]) for slot in slots]
        assert found.dtype == np.float32
        assert found.tolist() == [expected, expected], adapter.name
    assert any(slot.neutral_value for slot in slots), "some defaults are ones, such as a vector of ones"
    assert any(slot.axes != slot.graph_axes for slot in slots), "some matrices have two lengths"


@pytest.mark.parametrize(
    ("axes", "shape"),
    [
        ((), ()),
        ((2, 3, 4), (2, 3, 4)),
        (("k", 3, "b"), (2, 3, 4)),
        (("k", "b"), (5, 3)),
        ((2, 50_000), (2, 50_000)),
        ((50_000, 2), (50_000, 2)),
        ((50_000, 46_341), (3, 5)),
        (("b",), (70_000,)),
        ((2**20 + 3,), (2**20 + 3,)),
        (("b",), (2**21,)),
    ],
)
def test_checksums_cover_unusual_shapes_and_lengths(axes: tuple[int | str, ...], shape: tuple[int, ...]) -> None:
    """Test axes along which float64, or int64, cannot sum the products exactly without reduction."""
    slot = SlotRecord("adapter.site.w", "site", "graph", "w", axes, (1,) * len(axes))
    known = shape if any(axis != size for axis, size in zip(axes, shape, strict=True)) else axes
    free = [axis if axis == size else f"w.{axis}" for axis, size in zip(axes, known, strict=True)]
    inputs = [
        ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["batch"])),
        ir.Value(name=slot.name, type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(free)),
    ]
    graph = ir.Graph(inputs, [], nodes=[], opset_imports={"": 17}, name="graph")
    record = InputRecord("x", "float32", ("batch",), "values")
    model = add_checksums(ir.Model(graph, ir_version=8), [slot], "sums", [record])
    # the largest numbers of one sign, at the last positions
    tensor = np.full(shape, 0.5 - 2.0**-20, np.float32)
    (found,) = open_session(model, Path()).run(["sums"], {"x": np.zeros(2, np.float32), slot.name: tensor})
    assert found.tolist() == [[checksum(tensor)], [checksum(tensor)]]
    if tensor.size < 1000:
        assert checksum(tensor) == by_definition(tensor)


def test_bank_computes_checksums_of_the_adapter_of_each_row(planned: Planned) -> None:
    """Narrower adapters are zero-padded; row 0 is the base."""
    slots = planned.plan.slots
    heads = head_sums(planned.plan, [record.name for record in planned.base.outputs])
    names = ["houlsby", "houlsby_4", "lora", "lora_3", "ia3", "compacter", "compacter_4", "fused"]
    adapters = [planned.adapters[name] for name in names]
    rows = bank_rows(planned.plan, heads, adapters)
    record = BankRecord("adapter_ids", rows.names, True, bank_tensors(planned.plan, heads))
    model = add_bank_checksums(insert_bank(planned.base, planned.plan, rows), slots, "sums", record)
    session = open_session(model, planned.base.folder)
    chosen = [3, 0, 7, 1, 8, 2, 5, 4, 6]
    (found,) = session.run(["sums"], {**token_inputs(*[3] * len(chosen)), "adapter_ids": np.array(chosen)})
    for at, row in enumerate(chosen):
        if row == 0:
            expected = [by_definition(np.full(slot.neutral, slot.neutral_value)) for slot in slots]
        else:
            tensors = slot_tensors(planned.plan, adapters[row - 1])
            expected = [by_definition(tensors[slot.name]) for slot in slots]
        assert found[at].tolist() == expected
    assert len({tuple(row) for row in found.tolist()}) == len(chosen)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return build_small(tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module", params=["fp32", "int8"])
def bundle(request: pytest.FixtureRequest, plain: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with every graph; do not change it. `mood` is wider than `tone`, and `own` is only a head."""
    folder = tmp_path_factory.mktemp("checked") / "bundle"
    topic = make_adapter("topic", "houlsby", "gelu", 3, plain.base)
    own = replace(topic, name="own", graphs={}, placements={}, weights=_of_head(topic))
    adapters = [topic, _tone(plain, "tone", 4), _tone(plain, "mood", 6), own]
    ae.build(
        plain.model, adapters, folder, base_precision=request.param, adapter_precision="int8",
        checksums=True, variants=("all",), bake=["topic"],
    )  # fmt: skip
    return folder


def _of_head(adapter: Adapter) -> Arrays:
    return {name: tensor for name, tensor in adapter.weights.items() if name.startswith("head.")}


def _tone(plain: Built, name: str, width: int) -> Adapter:
    options = BottleneckOptions(activation="relu", scaling=2.0)
    return random_adapter(name, pfeiffer(options), plain.base, bottleneck=width, labels="ab")


class Client:
    """Runs the graphs of a bundle with ONNX Runtime only, and compares golden vectors (docs/reference/format.md)."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.manifest = folder, read_manifest(folder)
        self._sessions: dict[str, ort.InferenceSession] = {}

    def session(self, file: str) -> ort.InferenceSession:
        if file not in self._sessions:
            options = ort.SessionOptions()
            options.log_severity_level = 3
            self._sessions[file] = ort.InferenceSession(self.folder / file, options)
        return self._sessions[file]

    def golden(self, name: str | None) -> GoldenRecord:
        return self.manifest.golden if name is None else self._record(name).golden

    def tensors(self, name: str | None) -> Arrays:
        if name is None:
            return {slot.name: np.full(slot.neutral, slot.neutral_value, np.float32) for slot in self.manifest.slots}
        with_scales = read_tensors(self.folder / self._record(name).safetensors)
        return {
            key: (tensor * with_scales[f"{key}.scale"]).astype(np.float32) if tensor.dtype == np.int8 else tensor
            for key, tensor in with_scales.items()
            if not key.endswith(".scale")
        }

    def wrong(self, name: str | None, file: str, feeds: Callable[[int], Mapping[str, np.ndarray]]) -> set[str]:
        """Return the outputs that exceed their golden budgets; `feeds` takes the number of rows."""
        record, found = self.golden(name), set()
        golden = read_tensors(self.folder / record.path)
        for case in record.cases:
            inputs = {one.name: golden[f"{case}.input.{one.name}"] for one in self.manifest.inputs}
            rows = len(next(iter(inputs.values())))
            outputs = dict(
                zip(record.absolute, self.session(file).run([*record.absolute], {**inputs, **feeds(rows)}), strict=True)
            )
            for output, allowed in record.absolute.items():
                stored = golden[f"{case}.output.{output}"]
                shown = outputs[output][..., : stored.shape[-1]]
                assert shown.dtype == stored.dtype == np.float32
                assert shown.shape == stored.shape
                if not (np.abs(shown - stored) <= allowed).all():
                    found.add(output)
        return found

    def fed(self, name: str | None, tensors: Arrays, variant: str = "inputs") -> set[str]:
        return self.wrong(name, self.manifest.graphs[variant], lambda _: tensors)  # type: ignore[index]

    def of_row(self, name: str | None, row: int) -> set[str]:
        assert self.manifest.bank is not None
        ids = self.manifest.bank.ids
        return self.wrong(name, self.manifest.graphs["bank"], lambda rows: {ids: np.full(rows, row)})

    def _record(self, name: str) -> AdapterRecord:
        return next(record for record in self.manifest.adapters if record.name == name)


def test_right_tensors_pass_in_every_graph(bundle: Path) -> None:
    client = Client(bundle)
    assert client.manifest.checksums == "slot_checksums"
    for name in (None, *ADAPTERS):
        assert client.golden(name).absolute["slot_checksums"] == 0
        for variant in ("slots", "inputs"):
            assert client.fed(name, client.tensors(name), variant) == set()
        assert client.manifest.bank is not None
        assert client.of_row(name, client.manifest.bank.rows.index(name)) == set()
    (baked,) = {record.baked for record in client.manifest.adapters} - {None}
    assert client.wrong("topic", str(baked), lambda _: {}) == set()


def _neutral_site(client: Client, own: Arrays) -> Arrays:
    neutral = client.tensors(None)
    return {name: neutral[name] if SITE in name else tensor for name, tensor in own.items()}


def _of_another(client: Client, own: Arrays) -> Arrays:
    """Use one tensor of an adapter with tensors of the same shapes."""
    other = client.tensors("mood")
    name = next(name for name in own if SITE in name and own[name].any() and own[name].shape == other[name].shape)
    return {**own, name: other[name]}


def _stale(client: Client, own: Arrays) -> Arrays:
    """Keep the previous adapter's tensors at one site."""
    before = client.tensors("topic")
    return {name: before[name] if SITE in name else tensor for name, tensor in own.items()}


def _turned(client: Client, own: Arrays) -> Arrays:
    """Store the bytes of a matrix in the other order."""
    name = next(name for name in own if SITE in name and own[name].ndim == 2 and own[name].any())
    return {**own, name: np.ascontiguousarray(own[name].T).reshape(own[name].shape)}


def _permuted(client: Client, own: Arrays) -> Arrays:
    name = next(name for name in own if SITE in name and own[name].ndim == 2 and own[name].any())
    return {**own, name: np.ascontiguousarray(own[name][::-1])}


def _one_element(client: Client, own: Arrays) -> Arrays:
    """Change one element to the next float32: no output can show that."""
    name = next(name for name in own if SITE in name and own[name].ndim == 2 and own[name].any())
    changed = own[name].copy()
    changed.flat[np.abs(changed).argmax()] *= np.float32(1 + 1e-6)
    return {**own, name: changed}


FAULTS = (_neutral_site, _of_another, _stale, _turned, _permuted, _one_element)


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("variant", ["slots", "inputs"])
def test_wrong_tensors_are_found(bundle: Path, fault: Callable[[Client, Arrays], Arrays], variant: str) -> None:
    client = Client(bundle)
    own = client.tensors("tone")
    assert "slot_checksums" in client.fed("tone", fault(client, own), variant)


def test_a_skipped_input_is_found(bundle: Path) -> None:
    """A slot that is not fed has its neutral default."""
    client = Client(bundle)
    own = client.tensors("tone")
    name = next(name for name in own if SITE in name and own[name].any())
    assert "slot_checksums" in client.fed("tone", {key: own[key] for key in own.keys() - {name}}, "slots")


def test_rows_of_other_adapters_are_found_in_a_bank(bundle: Path) -> None:
    client = Client(bundle)
    assert client.manifest.bank is not None
    rows = client.manifest.bank.rows
    for row, name in enumerate(rows):
        for other in range(len(rows)):
            assert ("slot_checksums" in client.of_row(name, other)) == (other != row)


def test_one_tensor_of_a_bank_with_shifted_rows_is_found(bundle: Path) -> None:
    client = Client(bundle)
    bank = client.manifest.bank
    assert bank is not None
    held = ir.load(bundle / client.manifest.graphs["bank"]).graph.initializers
    for tensor in bank.tensors:
        values = held[tensor.name].const_value
        assert values is not None
        array, row = values.numpy(), bank.rows.index("tone")
        shifted = np.ascontiguousarray(np.roll(array, 1, 0))
        if tensor.slot is not None and (shifted[row] != array[row]).any():
            feeds = {tensor.name: shifted}
            file = client.manifest.graphs["bank"]
            wrong = client.wrong("tone", file, lambda rows, f=feeds: {**f, bank.ids: np.full(rows, row)})  # noqa: B023
            assert "slot_checksums" in wrong, tensor.name


def test_mixed_batches_have_the_checksums_of_each_row(bundle: Path) -> None:
    client = Client(bundle)
    bank = client.manifest.bank
    assert bank is not None
    golden = {name: read_tensors(bundle / client.golden(name).path) for name in bank.rows}
    case = next(case for case in client.manifest.golden.cases if len(golden[None][f"{case}.input.ids"]) > 1)
    inputs = {one.name: golden[None][f"{case}.input.{one.name}"] for one in client.manifest.inputs}
    count = len(inputs["ids"])
    chosen = [(3 * at + 1) % len(bank.rows) for at in range(count)]
    session = client.session(client.manifest.graphs["bank"])
    (found,) = session.run(["slot_checksums"], {**inputs, bank.ids: np.array(chosen)})
    for at, row in enumerate(chosen):
        assert np.array_equal(found[at], golden[bank.rows[row]][f"{case}.output.slot_checksums"][at])


def test_runtime_returns_no_checksums(bundle: Path) -> None:
    session = ae.open_bundle(bundle).session()
    inputs = {one.name: np.ones((2, 5), np.int64) for one in read_manifest(bundle).inputs}
    assert set(session.run(inputs)) == {"hidden"}
    assert set(session.run(inputs, "tone")) == {"hidden", "logits"}
    assert set(session.run(inputs, adapters=["tone", None], allow_mixed_rows=True)) == {"hidden", "logits"}


def test_verify_names_the_slots_that_differ(bundle: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(bundle, tmp_path / "bundle")

    def change(tensors: Arrays) -> None:
        tensors[name] = tensors[name][::-1].copy()

    held = read_tensors(copy / "adapters/tone.safetensors")
    name = next(name for name in held if SITE in name and held[name].dtype == np.int8 and held[name].any())
    assert prove(plan_check(copy, quick=True), None).passed
    edit_adapter(copy, "tone", change)
    report = prove(plan_check(copy, variants=("slots",), quick=True), None)
    wrong = [one for one in report.outputs if not one.passed and one.name == "slot_checksums"]
    assert {one.adapter for one in wrong} == {"tone"}
    assert {one.faults for one in wrong} == {(f"received different tensors for `{name}`",)}


def test_every_graph_is_proved_against_a_reference(plain: Built, tmp_path: Path) -> None:
    built = ae.build(plain.model, [_tone(plain, "tone", 4)], tmp_path / "bundle", checksums=True, variants=("all",))
    reference = Reference(str(plain.model), CutRunner(plain.base))
    report = prove(plan_check(tmp_path / "bundle"), reference)
    assert report.passed
    seen = {(one.variant, one.against) for one in report.outputs if one.name == "slot_checksums"}
    assert seen == {(form, against) for form in VARIANT_NAMES if form != "baked" for against in ("golden", "reference")}
    assert built.manifest.golden.absolute.keys() == {"hidden", "slot_checksums"}


def test_checksums_do_not_change_other_budgets(plain: Built, tmp_path: Path) -> None:
    adapters = [_tone(plain, "tone", 4)]
    with_them, without = (
        ae.build(plain.model, adapters, tmp_path / str(checksums), checksums=checksums).manifest
        for checksums in (True, False)
    )
    assert _budgets(with_them) == {key: {**known, "slot_checksums": 0.0} for key, known in _budgets(without).items()}
    assert without.checksums is None


def _budgets(manifest: Manifest) -> dict[str, dict[str, float]]:
    records = {"base": manifest.golden, **{record.name: record.golden for record in manifest.adapters}}
    return {name: dict(record.absolute) for name, record in records.items()}


@pytest.mark.parametrize("bundle", ["fp32"], indirect=True)  # the reference of `add` has the precision of the bundle
def test_added_adapters_have_checksums(bundle: Path, plain: Built, tmp_path: Path) -> None:
    """A wider adapter makes all rows of the bank wider."""
    copy = shutil.copytree(bundle, tmp_path / "bundle")
    add_adapters(copy, [_tone(plain, "late", 9)], references=CutRunner(plain.base))
    client = Client(copy)
    assert client.manifest.bank is not None
    for name in (None, *ADAPTERS, "late"):
        assert client.fed(name, client.tensors(name)) == set()
        assert client.of_row(name, client.manifest.bank.rows.index(name)) == set()
    remove_adapters(copy, ["late", "topic"])
    after = Client(copy)
    assert after.manifest.checksums == "slot_checksums"
    assert after.manifest.bank is not None
    for name in after.manifest.bank.rows:
        assert after.of_row(name, after.manifest.bank.rows.index(name)) == set()
