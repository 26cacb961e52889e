"""Modules saved as bases and loaded again: names, numbers, fingerprints, and unsupported modules."""

from __future__ import annotations

import copy
import dataclasses
import json
import zipfile
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from archives import Small, read_entries, save_plainly
from small_encoder import MAX_TOKENS, WORDS, Encoder, tokenizer_json
from torch import Tensor, nn

from adapter_export.errors import BaseModelError, OutputExistsError, RequestError, UsageError, WriteError
from adapter_export.format.lengths import Lengths
from adapter_export.format.manifest import InputRecord, OutputRecord
from adapter_export.torch_backend.base.torch_base import TorchBase, fingerprint, load_base, save_base

Point = namedtuple("Point", "left right")


@dataclasses.dataclass
class Result:
    hidden: Tensor
    missing: Tensor | None = None


class Returning(nn.Module):
    """Computes x + 1 and x + 2 and returns them in some form."""

    def __init__(self, form: Any) -> None:
        super().__init__()
        self.form = form

    def forward(self, x: Tensor) -> Any:
        return self.form(x + 1, x + 2)


def round_trip(module: nn.Module, inputs: Any, path: Path, **options: Any) -> TorchBase:
    save_base(module, inputs, path / "model.pt", **options)
    return load_base(path / "model.pt")


@pytest.fixture(scope="module")
def encoder_inputs() -> dict[str, Tensor]:
    ids = torch.arange(10).reshape(2, 5)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@pytest.mark.parametrize(
    ("form", "names"),
    [
        (lambda a, b: a, ["output_0"]),
        (lambda a, b: (a, b), ["output_0", "output_1"]),
        (lambda a, b: [a, b], ["output_0", "output_1"]),
        (lambda a, b: {"first": a, "second/part": b}, ["first", "second/part"]),
        (lambda a, b: {"first": a, "all": (a, b)}, ["first", "all.0", "all.1"]),
        (lambda a, b: {"first": a, "none": None}, ["first"]),
        (lambda a, b: Point(a, b), ["left", "right"]),
        (lambda a, b: Result(a), ["hidden"]),
        (lambda a, b: (a, {"x": b}), ["output_0", "output_1.x"]),
    ],
)
def test_outputs_have_the_names_of_the_model(form: Any, names: list[str], tmp_path: Path) -> None:
    base = round_trip(Returning(form), (torch.ones(1, 3),), tmp_path)
    assert [record.name for record in base.outputs] == names
    x = torch.randn(4, 3)
    result = base.run({"x": x})
    expected = {"0": x + 1, "1": x + 2, "first": x + 1, "hidden": x + 1, "left": x + 1, "output_0": x + 1}
    assert torch.equal(result[names[0]], expected[names[0]])
    assert torch.equal(list(result.values())[-1], x + 1 if len(names) == 1 else x + 2)


def test_an_output_with_the_name_of_an_input_is_renamed(tmp_path: Path) -> None:
    base = round_trip(Returning(lambda a, b: {"x": a}), (torch.ones(1, 3),), tmp_path)
    assert [record.name for record in base.outputs] == ["x_output"]


@pytest.mark.parametrize(
    ("form", "message"),
    [
        (lambda a, b: {"cache": SimpleNamespace(a=a)}, "`cache`"),
        (lambda a, b: None, "not a tensor"),
        (lambda a, b: "a", "`str`"),
    ],
)
def test_non_tensor_outputs_are_refused(form: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(BaseModelError, match=message):
        round_trip(Returning(form), (torch.ones(1, 3),), tmp_path)


def test_saved_text_encoder_keeps_outputs_and_tokenizer(tmp_path: Path, encoder_inputs: dict[str, Tensor]) -> None:
    torch.manual_seed(0)
    module = Encoder(layers=1)
    base = round_trip(module, encoder_inputs, tmp_path, tokenizer=tokenizer_json(), max_tokens=20)
    assert base.inputs == (
        InputRecord("input_ids", "int64", ("batch", "sequence"), "ids", limit=len(WORDS)),
        InputRecord("attention_mask", "int64", ("batch", "sequence"), "mask"),
    )
    assert base.outputs == (
        OutputRecord("hidden", "float32", ("batch", "sequence", 16)),
        OutputRecord("pooled", "float32", ("batch", 16)),
    )
    assert base.max_tokens == 20
    assert base.tokenizer == tokenizer_json()
    assert module.training


def test_the_length_of_the_position_table_bounds_the_tokens(tmp_path: Path, encoder_inputs: dict[str, Tensor]) -> None:
    assert round_trip(Encoder(layers=1), encoder_inputs, tmp_path).max_tokens == MAX_TOKENS


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (2, 1), (2, 2), (2, 24), (3, 7)])
def test_examples_of_any_shape_give_a_base_for_all_shapes(shape: tuple[int, int], tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Encoder(layers=1).eval()
    ids = torch.ones(shape, dtype=torch.int64)
    # one tensor for both: torch would treat the two inputs as one
    base = round_trip(module, {"input_ids": ids, "attention_mask": ids}, tmp_path)
    for rows, tokens in ((1, 1), (3, 7), (2, 24), (5, 5)):
        given = torch.randint(0, len(WORDS), (rows, tokens))
        mask = torch.ones_like(given)
        mask[-1, tokens // 2 + 1 :] = 0
        inputs = {"input_ids": given, "attention_mask": mask}
        expected = module(**inputs)
        for name, value in base.run(inputs).items():
            torch.testing.assert_close(value, expected[name], rtol=0, atol=1e-6)


def test_the_order_of_the_inputs_is_that_of_the_model(tmp_path: Path, encoder_inputs: dict[str, Tensor]) -> None:
    base = round_trip(Encoder(layers=1), dict(reversed(encoder_inputs.items())), tmp_path)
    assert [record.name for record in base.inputs] == ["input_ids", "attention_mask"]


def test_saved_base_keeps_names_of_axes(tmp_path: Path, encoder_inputs: dict[str, Tensor]) -> None:
    axes = {name: {0: "rows", 1: "tokens"} for name in encoder_inputs}
    base = round_trip(Encoder(layers=1), encoder_inputs, tmp_path, axes=axes)
    assert [record.axes for record in base.inputs] == [("rows", "tokens"), ("rows", "tokens")]
    assert base.outputs[0].axes == ("rows", "tokens", 16)


def test_axes_that_are_left_out_are_fixed(tmp_path: Path, encoder_inputs: dict[str, Tensor]) -> None:
    base = round_trip(Encoder(layers=1), encoder_inputs, tmp_path, axes={name: {0: "batch"} for name in encoder_inputs})
    assert base.inputs[0].axes == ("batch", 5)
    assert base.max_tokens == 5


def test_computed_axes_are_named_by_their_expression(tmp_path: Path) -> None:
    class Twice(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([x, x], 0)

    assert round_trip(Twice(), (torch.ones(1, 3),), tmp_path).outputs[0].axes == ("2*batch", 3)


def test_two_sequences_of_different_lengths_keep_their_own_axes(tmp_path: Path) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens = nn.Embedding(9, 4)

        def forward(self, question: Tensor, answer: Tensor) -> Tensor:
            return self.tokens(question).mean(1) + self.tokens(answer).mean(1)

    examples = (torch.ones(2, 3, dtype=torch.int64), torch.ones(2, 5, dtype=torch.int64))
    by_default = round_trip(Two(), examples, tmp_path)
    assert [record.axes for record in by_default.inputs] == [("batch", "sequence"), ("batch", "answer_sequence")]
    (tmp_path / "model.pt").unlink()
    names = {"question": {0: "batch", 1: "asked"}, "answer": {0: "batch", 1: "answered"}}
    base = round_trip(Two(), examples, tmp_path, axes=names)
    assert [record.axes for record in base.inputs] == [("batch", "asked"), ("batch", "answered")]
    assert [record.limit for record in base.inputs] == [9, 9]


def test_saved_base_restores_names_changed_by_torch(tmp_path: Path) -> None:
    class Upper(nn.Module):
        def forward(self, X: Tensor, input: Tensor) -> Tensor:
            return X + input

    base = round_trip(Upper(), (torch.ones(1, 3), torch.ones(1, 3)), tmp_path)
    assert [record.name for record in base.inputs] == ["X", "input"]
    placeholders = [node.name for node in base.module().graph.find_nodes(op="placeholder")]
    assert placeholders == ["X", "input"]
    assert torch.equal(
        base.run({"X": torch.ones(2, 3), "input": torch.ones(2, 3)})["output_0"], torch.full((2, 3), 2.0)
    )


def test_the_archive_shows_nothing_of_the_machine_and_holds_no_sample_inputs(tmp_path: Path) -> None:
    save_base(Small(), (torch.ones(1, 4),), tmp_path / "model.pt")
    entries = read_entries(tmp_path / "model.pt")
    assert entries["data/sample_inputs/model.pt"] == b""
    assert str(Path(__file__).parent.parent).encode() not in b"".join(entries.values())
    note = json.loads(entries["extra/adapter_export.json"])
    assert note["inputs"] == {"x": ["batch", 4]}
    assert note["producer"].startswith("adapter-export ")


def test_torch_loads_saved_archives(tmp_path: Path) -> None:
    module = Small().eval()
    save_base(module, (torch.ones(1, 4),), tmp_path / "model.pt2")
    x = torch.randn(3, 4)
    loaded = torch.export.load(tmp_path / "model.pt2").module()
    assert torch.equal(loaded(x=x)["output_0"], module(x))


def test_plain_torch_archives_are_opened(tmp_path: Path) -> None:
    save_plainly(tmp_path / "small.pt2")
    base = load_base(tmp_path / "small.pt2")
    assert base.inputs == (InputRecord("x", "float32", ("batch", 4), "values"),)
    assert base.outputs == (OutputRecord("output_0", "float32", ("batch", 4)),)
    assert (base.max_tokens, base.tokenizer) == (None, None)
    x = torch.randn(1, 4)
    torch.manual_seed(0)
    torch.testing.assert_close(base.run({"x": x})["output_0"], Small()(x), rtol=0, atol=1e-6)


def test_a_trusted_file_gives_the_same_base(tmp_path: Path) -> None:
    save_base(Small(), (torch.ones(1, 4),), tmp_path / "model.pt", tokenizer="{}")
    trusted, screened = load_base(tmp_path / "model.pt", trust_pickle=True), load_base(tmp_path / "model.pt")
    assert trusted.fingerprint == screened.fingerprint
    assert (trusted.inputs, trusted.outputs, trusted.tokenizer) == (screened.inputs, screened.outputs, "{}")


def test_the_fingerprint_survives_saving_and_loading(tmp_path: Path) -> None:
    torch.manual_seed(0)
    base = round_trip(Small(), (torch.ones(1, 4),), tmp_path)
    again = tmp_path / "again.pt2"
    torch.export.save(base.program, again)
    save_plainly(tmp_path / "plain.pt2")
    torch.manual_seed(0)
    in_memory = torch.export.export(Small(), (torch.ones(3, 4),))
    expected = {load_base(again).fingerprint, fingerprint(in_memory), load_base(tmp_path / "plain.pt2").fingerprint}
    assert expected == {base.fingerprint}
    assert base.fingerprint.startswith("sha256:")


@pytest.mark.parametrize("name", ["linear.weight", "linear.bias", "shift"])
def test_the_fingerprint_changes_with_one_bit_of_a_weight(name: str) -> None:
    module = Small().eval()
    before = fingerprint(torch.export.export(module, (torch.ones(3, 4),)))
    with torch.no_grad():
        tensor = module.state_dict()[name]
        tensor.view(-1)[-1] = torch.nextafter(tensor.view(-1)[-1], torch.tensor(9.0))
    assert fingerprint(torch.export.export(module, (torch.ones(3, 4),))) != before


def test_the_fingerprint_does_not_depend_on_the_layout_in_memory() -> None:
    module = Small().eval()
    before = fingerprint(torch.export.export(module, (torch.ones(3, 4),)))
    module.linear.weight = nn.Parameter(module.linear.weight.detach().t().contiguous().t())
    assert not module.linear.weight.is_contiguous()
    assert fingerprint(torch.export.export(module, (torch.ones(3, 4),))) == before


def test_each_module_is_new_and_shares_the_weights(tmp_path: Path) -> None:
    base = round_trip(Small(), (torch.ones(1, 4),), tmp_path)
    first, second = base.module(), base.module()
    first.graph.erase_node(next(iter(reversed(first.graph.nodes))))
    assert len(second.graph.nodes) == len(first.graph.nodes) + 1
    assert first.linear.weight is second.linear.weight


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "do not match the base"),
        ({"x": torch.ones(1, 4), "y": torch.ones(1)}, "do not match the base"),
        ({"x": torch.ones(1, 5)}, "cannot compute"),
    ],
)
def test_run_refuses_inputs_that_do_not_match(inputs: dict[str, Tensor], message: str, tmp_path: Path) -> None:
    base = round_trip(Small(), (torch.ones(1, 4),), tmp_path)
    with pytest.raises(RequestError, match=message):
        base.run(inputs)


@pytest.mark.parametrize(
    ("inputs", "axes", "message"),
    [
        ({"y": torch.ones(1, 4)}, None, "do not match the arguments"),
        ({}, None, "do not match the arguments"),
        ((torch.ones(1, 4), torch.ones(1, 4)), None, "do not match the arguments"),
        ({"x": [1, 2]}, None, "not a tensor"),
        ({"x": torch.ones(0, 4)}, None, "different lengths"),
        ({"x": torch.ones(2, 4)}, {"y": {0: "batch"}}, "an axis is named"),
        ({"x": torch.ones(2, 4)}, {"x": {2: "batch"}}, "an axis is named"),
    ],
)
def test_wrong_example_inputs_are_refused(inputs: Any, axes: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        save_base(Small(), inputs, tmp_path / "model.pt", axes=axes)
    assert list(tmp_path.iterdir()) == []


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 1 if x.sum() > 0 else x


class Multiple(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 1 if x.shape[1] % 2 == 0 else x


class LongOnly(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 1 if x.shape[1] > 4 else x


class Stateful(nn.Module):
    """Computes short inputs differently, and keeps doing so (BigBird)."""

    def __init__(self) -> None:
        super().__init__()
        self.short = False

    def forward(self, x: Tensor) -> Tensor:
        self.short = self.short or x.shape[1] <= 28
        return x * 2 if self.short else x * 3


class Fixed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.ones(7)


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.calls.add_(1)
        return x + self.calls


class ChangingItsInput(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.unsqueeze(0).mul_(2)


class Harmless(nn.Module):
    """Modifies its own intermediate results in place."""

    def forward(self, x: Tensor) -> Tensor:
        return (x + 1).view(-1, 7).mul_(2)


class NoTensors(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise KeyError("nothing")


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (Branching(), "torch cannot export.*branch on the values"),
        (Fixed(), r"torch cannot export.*constant \(7\).*Fix that axis"),
        (Counting(), "changes its own weights or inputs.*calls"),
        (ChangingItsInput(), "changes its own weights or inputs.*`x`"),
        (NoTensors(), "cannot run on example inputs.*nothing"),
        (nn.Linear(7, 7).half(), "cannot run on example inputs.*Half"),
    ],
)
def test_unsupported_modules_are_refused(module: nn.Module, message: str, tmp_path: Path) -> None:
    name = "input" if isinstance(module, nn.Linear) else "x"
    with pytest.raises(BaseModelError, match=message):
        save_base(module, {name: torch.ones(2, 7)}, tmp_path / "model.pt", axes={name: {0: "batch", 1: "length"}})
    assert list(tmp_path.iterdir()) == []


def test_lengths_are_tried_no_further_than_memory_allows(tmp_path: Path) -> None:
    axes = {"x": {0: "batch", 1: "channels", 2: "height", 3: "width"}}
    # the next factor would need 15 GB
    with pytest.raises(BaseModelError, match=r"cannot run on example inputs.*\[2, 120, 160, 200\]"):
        save_base(NoTensors(), {"x": torch.ones(1, 1, 1, 1)}, tmp_path / "model.pt", axes=axes)


@pytest.mark.parametrize(
    ("module", "wanted", "expected"),
    [
        (Multiple(), {}, None),
        (Multiple(), {"length": Lengths(8, multiple_of=2)}, Lengths(8, multiple_of=2)),
        (LongOnly(), {}, Lengths(5)),
        (LongOnly(), {"length": Lengths(1, 3)}, Lengths(1, 3)),
        (Stateful(), {}, Lengths(1, 28)),
        (Stateful(), {"length": Lengths(64, 128)}, Lengths(64, 128)),
        (Stateful(), {"length": Lengths(20, 40)}, Lengths(20, 28)),
    ],
    ids=lambda one: type(one).__name__ if isinstance(one, nn.Module) else str(one),
)
def test_lengths_are_those_that_the_captured_branch_computes(
    module: nn.Module, wanted: dict[str, Lengths], expected: Lengths | None, tmp_path: Path
) -> None:
    path, axes = tmp_path / "model.pt", {"x": {0: "batch", 1: "length"}}
    save_base(module, {"x": torch.ones(2, 7)}, path, axes=axes, lengths=wanted)
    base = load_base(path)
    # an odd example is captured again with an even one: a record can express multiples of 2, but not odd lengths
    assert base.lengths["length"] == (expected or Lengths(2, multiple_of=2))
    with torch.no_grad():
        for length in (base.lengths["length"].minimum, base.lengths["length"].near(40)):
            x = torch.randn(3, length)
            live = copy.deepcopy(module)
            live.__dict__.pop("short", None)
            live.short = False
            torch.testing.assert_close(base.run({"x": x})["output_0"], live(x))


def test_large_inputs_are_tried_in_small_batches(tmp_path: Path) -> None:
    seen = set[int]()

    class Watched(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.update(size for size in x.shape[:1] if isinstance(size, int))
            return x.mean((1, 2, 3))

    save_base(Watched(), {"x": torch.ones(1, 3, 1024, 512)}, tmp_path / "model.pt")
    assert seen == {1, 2}
    assert load_base(tmp_path / "model.pt").lengths == {}


def test_a_fixed_axis_is_a_number(tmp_path: Path) -> None:
    path, axes = tmp_path / "model.pt", {"x": {0: "batch", 1: "length"}}
    save_base(Fixed(), {"x": torch.ones(2, 3)}, path, axes=axes, lengths={"length": Lengths(7, 7)})
    assert load_base(path).inputs[0].axes == ("batch", 7)
    with pytest.raises(UsageError, match=r"unknown dynamic axis.*`tokens`.*`batch`, `length`"):
        save_base(Fixed(), {"x": torch.ones(2, 3)}, path, axes=axes, lengths={"tokens": Lengths(7, 7)}, force=True)


def test_changes_of_its_own_values_are_fine(tmp_path: Path) -> None:
    base = round_trip(Harmless(), (torch.ones(2, 7),), tmp_path)
    assert torch.equal(base.run({"x": torch.ones(3, 7)})["output_0"], torch.full((3, 7), 4.0))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_types_than_float32_are_named(dtype: torch.dtype, tmp_path: Path) -> None:
    with pytest.raises(BaseModelError, match=str(dtype).removeprefix("torch.")):
        save_base(nn.Linear(4, 4).to(dtype), (torch.ones(2, 4, dtype=dtype),), tmp_path / "model.pt")


def test_a_bare_archive_with_a_branch_on_a_length_is_refused(tmp_path: Path) -> None:
    dynamic = ({0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC},)
    program = torch.export.export(Multiple().eval(), (torch.ones(3, 5),), dynamic_shapes=dynamic)
    torch.export.save(program, tmp_path / "model.pt2")
    with pytest.raises(BaseModelError, match=r"model.pt2.*some lengths only.*% 2"):
        load_base(tmp_path / "model.pt2")


def test_existing_file_survives_a_failed_save(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    path.write_text("mine")
    with pytest.raises(OutputExistsError):
        save_base(Small(), (torch.ones(1, 4),), path)
    with pytest.raises(BaseModelError):
        save_base(NoTensors(), (torch.ones(1, 4),), path, force=True)
    assert path.read_text() == "mine"
    save_base(Small(), (torch.ones(1, 4),), path, force=True)
    assert zipfile.is_zipfile(path)
    assert list(tmp_path.iterdir()) == [path]


def test_full_disk_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.pt"
    device = Path("/dev/full")
    if not device.exists():
        pytest.skip("this system has no /dev/full")
    really_open = Path.open

    def open_full(self: Path, mode: str = "r", *args: Any, **options: Any) -> Any:
        return really_open(device if "w" in mode else self, mode, *args, **options)

    monkeypatch.setattr(Path, "open", open_full)
    with pytest.raises(WriteError, match=r"model.pt"):
        save_base(Small(), (torch.ones(1, 4),), path)
    monkeypatch.undo()
    assert list(tmp_path.iterdir()) == []


def test_saving_prints_nothing_and_leaves_module_and_torch_unchanged(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    module = Encoder()
    module.layers[0].eval()
    module.config = SimpleNamespace(use_cache=True)
    ids = torch.ones(1, 3, dtype=torch.int64)
    before = torch.backends.mha.get_fastpath_enabled()
    save_base(module, {"input_ids": ids, "attention_mask": ids}, tmp_path / "model.pt")
    assert module.training
    assert not module.layers[0].training
    assert module.layers[1].training
    assert module.config.use_cache
    assert not module._forward_hooks
    assert torch.backends.mha.get_fastpath_enabled() == before
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""


def test_a_torch_transformer_with_fast_path_is_saved(tmp_path: Path) -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    module = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    base = round_trip(module, (torch.randn(1, 3, 8),), tmp_path, axes={"src": {0: "batch", 1: "sequence"}})
    x = torch.randn(3, 7, 8)
    torch.testing.assert_close(base.run({"src": x})["output_0"], module(x), rtol=0, atol=1e-5)


class Nested(nn.Module):
    """Reads tensors inside containers."""

    def forward(self, x: Tensor, past: list[dict[str, Tensor]], pair: tuple[Tensor, Tensor]) -> Tensor:
        return x + 10 * past[0]["a"] + 100 * past[1]["a"] + 1000 * pair[0] + 10000 * pair[1]


def test_tensors_in_containers_are_inputs_with_keys_and_places_in_their_names(tmp_path):
    ones = [torch.full((2, 3), float(value)) for value in range(1, 6)]
    inputs = {"x": ones[0], "past": [{"a": ones[1]}, {"a": ones[2]}], "pair": (ones[3], ones[4])}
    names = ["x", "past.0.a", "past.1.a", "pair.0", "pair.1"]
    base = round_trip(Nested(), inputs, tmp_path, axes={name: {0: "batch"} for name in names})
    assert [(record.name, record.axes) for record in base.inputs] == [(name, ("batch", 3)) for name in names]
    found = base.run({name: value[:1] for name, value in zip(names, ones, strict=True)})
    assert found["output_0"].tolist() == [[54321.0] * 3]


def test_an_example_input_in_a_container_that_is_no_tensor_is_named(tmp_path):
    inputs = {"x": torch.ones(2), "past": [{"a": 3}, {"a": torch.ones(2)}], "pair": (torch.ones(2), torch.ones(2))}
    with pytest.raises(UsageError, match=r"`past.0.a`: an example input is not a tensor; found `int`"):
        save_base(Nested(), inputs, tmp_path / "model.pt")
