"""Adapters in a base: correct values at the right place, and an unchanged base."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import small_encoder
import torch
from small_encoder import WIDTH, Encoder, load_encoder
from small_task import make_adapter, sites_of, with_random_weights
from torch import Tensor, nn

from adapter_export.errors import AdapterError, BaseMismatchError, RequestError
from adapter_export.format.adapter_files import read_adapter, write_adapter
from adapter_export.graph.adapter import Adapter
from adapter_export.graph.kinds import BottleneckOptions
from adapter_export.graph.ops import POOLINGS
from adapter_export.numerics.evaluate_adapter import evaluate
from adapter_export.torch_backend.attach import attach
from adapter_export.torch_backend.base.torch_base import TorchBase, load_base, save_base
from adapter_export.training.loop.init_adapter import relative_change

ACTIVATED = {"relu": torch.relu, "gelu": nn.functional.gelu, "silu": nn.functional.silu}


@pytest.fixture(scope="module", params=[False, True], ids=["post_norm", "pre_norm"])
def pre_norm(request: pytest.FixtureRequest) -> bool:
    return request.param


@pytest.fixture(scope="module")
def base(pre_norm: bool, tmp_path_factory: pytest.TempPathFactory) -> TorchBase:
    return load_encoder(tmp_path_factory.mktemp("base") / "model.pt", pre_norm=pre_norm)


@pytest.fixture
def inputs() -> dict[str, Tensor]:
    return small_encoder.inputs()


def by_hand(module: Encoder, adapter: Adapter, kind: str, activation: str, inputs: dict[str, Tensor]) -> Tensor:
    """Compute the hidden state by the published formula, with hooks on the original model and no code of ours."""

    def bottleneck(owner: str, v: Tensor) -> Tensor:
        t = {name: torch.from_numpy(tensor) for name, tensor in adapter.parameters(owner).items()}
        return ACTIVATED[activation](v @ t["down.weight"] + t["down.bias"]) @ t["up.weight"] + t["up.bias"]

    read: dict[int, Tensor] = {}
    for index, layer in enumerate(module.layers):
        ffn, attention = f"layers.{index}.ffn", f"layers.{index}.attention"
        if kind == "houlsby":
            layer.out.register_forward_hook(lambda _m, _i, h, at=attention: h + bottleneck(at, h))
        if kind == "parallel":
            layer.up.register_forward_pre_hook(lambda _m, u, n=index: read.update({n: u[0]}))
            layer.down.register_forward_hook(lambda _m, _i, h, at=ffn, n=index: h + bottleneck(at, read[n]))
        else:
            layer.down.register_forward_hook(lambda _m, _i, h, at=ffn: h + bottleneck(at, h))
    with torch.inference_mode():
        return module(**inputs)["hidden"]


@pytest.mark.parametrize("activation", ["relu", "gelu", "silu"])
@pytest.mark.parametrize("kind", ["houlsby", "pfeiffer", "parallel"])
def test_attached_adapter_computes_the_published_formula(
    base, pre_norm: bool, inputs, kind: str, activation: str
) -> None:
    original = Encoder(pre_norm)
    original.load_state_dict(base.program.state_dict)
    adapter = with_random_weights(make_adapter(base, kind, BottleneckOptions(activation)))
    with torch.inference_mode():
        found = attach(base, adapter)(**inputs)["hidden"]
    expected = by_hand(original, adapter, kind, activation, inputs)
    assert (expected - base.run(inputs)["hidden"]).abs().max() > 0.1, "the adapter must have an effect"
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["houlsby", "pfeiffer", "parallel"])
def test_every_site_agrees_with_the_reference(base, inputs, kind: str) -> None:
    options = BottleneckOptions("gelu", scaling=1.5, norm_before=True, norm_after=True)
    adapter = with_random_weights(make_adapter(base, kind, options))
    model = attach(base, adapter)
    with torch.inference_mode(), model.observed() as calls:
        model(**inputs)
    assert set(calls) == {owner for owner, _, _ in adapter.components()}
    for owner, graph, _ in adapter.components():
        read = {name: value.numpy() for name, value in calls[owner].read.items()}
        expected = evaluate(graph, read, adapter.parameters(owner))
        np.testing.assert_allclose(calls[owner].result.numpy(), expected, atol=1e-6, rtol=1e-6)


def test_model_without_an_adapter_equals_the_base(base, inputs) -> None:
    model = attach(base, None)
    expected = base.run(inputs)
    with torch.inference_mode():
        found = model(**inputs)
    assert found.keys() == expected.keys() == {"hidden", "pooled"}
    assert all(torch.equal(found[name], expected[name]) for name in found)
    assert torch.equal(model.hidden(**inputs), expected["hidden"])
    assert model.tensors() == {}


@pytest.mark.parametrize("scheme", ["zero_up", "kaiming_zero_up"])
def test_a_zero_up_projection_starts_at_the_base_bit_for_bit(base, inputs, scheme: str) -> None:
    model = attach(base, make_adapter(base, scheme=scheme))
    with torch.inference_mode():
        assert torch.equal(model(**inputs)["hidden"], base.run(inputs)["hidden"])
    assert relative_change(model, inputs) == 0.0


def test_a_small_start_is_near_the_base_and_random_weights_are_not(base, inputs) -> None:
    adapter = make_adapter(base)
    near = relative_change(attach(base, adapter), inputs)
    assert 0 < near < 0.05
    assert relative_change(attach(base, with_random_weights(adapter)), inputs) > 10 * near


def test_the_change_is_that_of_the_final_hidden_state(base, inputs) -> None:
    model = attach(base, with_random_weights(make_adapter(base)))
    with torch.inference_mode():
        after, before = (one["hidden"].numpy().astype(np.float64) for one in (model(**inputs), base.run(inputs)))
    expected = np.linalg.norm(after - before) / np.linalg.norm(before)
    assert relative_change(model, inputs) == pytest.approx(expected, rel=1e-9)


def test_adapters_take_turns_on_one_base(base, inputs) -> None:
    fingerprint, graph = base.run(inputs)["hidden"], str(base.module().graph)
    first, second = (with_random_weights(make_adapter(base, kind), seed=1) for kind in ("houlsby", "pfeiffer"))
    with torch.inference_mode():
        a, b, again = (attach(base, adapter)(**inputs)["logits"] for adapter in (first, second, first))
    assert torch.equal(a, again)
    assert not torch.allclose(a, b)
    assert torch.equal(base.run(inputs)["hidden"], fingerprint)
    assert str(base.module().graph) == graph


def test_adapted_models_share_the_weights_of_the_base(base) -> None:
    own = {tensor.data_ptr() for tensor in base.program.state_dict.values()}
    model = attach(base, make_adapter(base))
    frozen = [tensor for tensor in model.parameters() if not tensor.requires_grad]
    assert frozen
    assert {tensor.data_ptr() for tensor in frozen} <= own


def test_all_and_only_adapter_tensors_get_gradients(base, inputs) -> None:
    model = attach(base, make_adapter(base))
    model(**inputs)["logits"].square().sum().backward()
    wanted = {id(tensor) for tensor in model.tensors().values()}
    assert {id(tensor) for tensor in model.parameters() if tensor.requires_grad} == wanted
    assert all(tensor.grad is None for tensor in model.parameters() if id(tensor) not in wanted)
    assert all(tensor.grad is not None and tensor.grad.abs().max() > 0 for tensor in model.tensors().values())


def test_zero_up_projections_block_gradients_of_down_projections(base, inputs) -> None:
    model = attach(base, make_adapter(base, scheme="zero_up"))
    model(**inputs)["logits"].square().sum().backward()
    idle = {name for name, tensor in model.tensors().items() if not tensor.grad.any()}
    assert idle == {name for name in model.tensors() if ".down." in name}


def test_dropout_acts_in_training_alone(base, inputs) -> None:
    adapter = with_random_weights(make_adapter(base, options=BottleneckOptions("relu", dropout=0.5)))
    model = attach(base, adapter)
    with torch.inference_mode():
        assert torch.equal(model(**inputs)["hidden"], model(**inputs)["hidden"])
        model.train()
        assert not torch.equal(model(**inputs)["hidden"], model(**inputs)["hidden"])


@pytest.mark.parametrize("pooling", POOLINGS)
def test_padding_does_not_reach_the_logits(base, pooling: str) -> None:
    model = attach(base, with_random_weights(make_adapter(base, pooling=pooling)))
    short = {name: value[:1] for name, value in small_encoder.inputs(batch=2).items()}
    padded = {name: nn.functional.pad(value, (0, 4)) for name, value in short.items()}
    with torch.inference_mode():
        torch.testing.assert_close(model(**short)["logits"], model(**padded)["logits"], atol=1e-5, rtol=1e-5)


def test_the_head_is_the_reference_head(base, inputs) -> None:
    adapter = with_random_weights(make_adapter(base))
    with torch.inference_mode():
        outputs = attach(base, adapter)(**inputs)
    hidden, mask = outputs["hidden"].double().numpy(), inputs["attention_mask"].numpy()[..., None]
    pooled = (hidden * mask).sum(1) / mask.sum(1)
    tensors = adapter.parameters("head")
    expected = pooled @ tensors["classifier.weight"] + tensors["classifier.bias"]
    np.testing.assert_allclose(outputs["logits"].numpy(), expected, atol=1e-5)


class WithoutMask(nn.Module):
    """A base without a mask."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = Encoder()

    def forward(self, values: Tensor) -> Tensor:
        bias = torch.zeros(1, 1, 1, 1)
        for layer in self.encoder.layers:
            values = layer(values, bias)
        return values


def test_head_without_a_mask_pools_every_token(tmp_path: Path) -> None:
    torch.manual_seed(0)
    axes = {"values": {0: "batch", 1: "tokens"}}
    save_base(WithoutMask(), {"values": torch.randn(2, 5, WIDTH)}, tmp_path / "model.pt", axes=axes)
    base = load_base(tmp_path / "model.pt")
    adapter = with_random_weights(make_adapter(base))
    with torch.inference_mode():
        outputs = attach(base, adapter)(values=torch.randn(3, 7, WIDTH))
    tensors = adapter.parameters("head")
    expected = outputs["output_0"].mean(1).numpy() @ tensors["classifier.weight"] + tensors["classifier.bias"]
    np.testing.assert_allclose(outputs["logits"].numpy(), expected, atol=1e-5)


def test_adapter_survives_saving_and_loading(base, inputs, tmp_path: Path) -> None:
    model = attach(base, with_random_weights(make_adapter(base)))
    write_adapter(model.to_adapter(training={"seed": 1}), tmp_path / "a")
    read = read_adapter(tmp_path / "a")
    assert read.training == {"seed": 1}
    with torch.inference_mode():
        assert torch.equal(attach(base, read)(**inputs)["logits"], model(**inputs)["logits"])


def test_exported_adapter_does_not_change_with_the_model(base) -> None:
    model = attach(base, make_adapter(base))
    adapter = model.to_adapter()
    before = {name: tensor.copy() for name, tensor in adapter.weights.items()}
    with torch.no_grad():
        for tensor in model.tensors().values():
            tensor.add_(1)
    assert all(np.array_equal(adapter.weights[name], before[name]) for name in before)


def test_an_adapter_of_another_base_is_refused(base, tmp_path: Path) -> None:
    other = with_random_weights(make_adapter(base))
    object.__setattr__(other, "base", "sha256:" + "0" * 64)
    with pytest.raises(BaseMismatchError, match="trained on another base"):
        attach(base, other)
    attach(base, other, allow_mismatch=True)


def test_a_site_that_the_base_lacks_is_named(base) -> None:
    adapter = make_adapter(base)
    placements = {name.replace("layers.1", "layers.7"): placement for name, placement in adapter.placements.items()}
    weights = {name.replace("layers.1", "layers.7"): tensor for name, tensor in adapter.weights.items()}
    moved = Adapter("a", "houlsby", base.fingerprint, adapter.graphs, placements, weights, adapter.head)
    with pytest.raises(AdapterError, match=r"acts at `layers\.7\.attention`, which the base does not have"):
        attach(base, moved)


def test_another_width_is_refused(base) -> None:
    sites = sites_of(base)
    wider = type(sites)(sites.sites, sites.final, WIDTH + 1)
    with pytest.raises(AdapterError, match=r"has `d` = \d+ at `head`"):
        attach(base, make_adapter(base), sites=wider)


def test_missing_and_unknown_inputs_are_refused(base, inputs) -> None:
    model = attach(base, None)
    with pytest.raises(RequestError, match="expected input_ids, attention_mask"):
        model(input_ids=inputs["input_ids"])
    with pytest.raises(RequestError, match="do not match the base"):
        model(**inputs, more=inputs["input_ids"])


def test_to_adapter_requires_an_attached_adapter(base) -> None:
    with pytest.raises(AdapterError, match="no adapter is attached"):
        attach(base, None).to_adapter()


class ScoringEncoder(Encoder):
    """An encoder with an output called `logits`."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        return {"logits": super().forward(input_ids, attention_mask)["hidden"]}


def test_head_output_is_renamed_if_the_base_has_logits(tmp_path: Path, inputs: dict[str, Tensor]) -> None:
    save_base(ScoringEncoder().eval(), inputs, tmp_path / "model.pt")
    base = load_base(tmp_path / "model.pt")
    model = attach(base, make_adapter(base, "houlsby"))
    with torch.inference_mode():
        outputs = model(**inputs)
    assert set(outputs) == {"logits", "adapter_logits"}
    assert outputs["logits"].shape[-1] == WIDTH
    assert torch.equal(outputs["adapter_logits"], model.head(**inputs))
