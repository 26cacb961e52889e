"""The torch reference as a runner: arrays in, arrays out, any adapter per call."""

from __future__ import annotations

import re

import numpy as np
import pytest
import small_encoder
import torch
from small_task import make_adapter, with_random_weights

from adapter_export.errors import BaseMismatchError, RequestError
from adapter_export.numerics.runner import Runner
from adapter_export.torch_backend.attach import attach
from adapter_export.torch_backend.base.torch_base import TorchBase
from adapter_export.torch_backend.torch_runner import TorchRunner


@pytest.fixture(scope="module")
def runner(base: TorchBase) -> Runner:
    return TorchRunner(base)


@pytest.fixture
def arrays() -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in small_encoder.inputs().items()}


def test_description_states_torch_and_precision(runner: Runner) -> None:
    assert re.fullmatch(r"torch \d+\.\d+\.\d+ float32", runner.description)


def test_runner_computes_what_the_attached_model_computes(base, runner: Runner, arrays) -> None:
    adapter = with_random_weights(make_adapter(base))
    with torch.inference_mode():
        expected = attach(base, adapter)(**small_encoder.inputs())
    found = runner.run(arrays, adapter)
    assert found.keys() == expected.keys() == {"hidden", "pooled", "logits"}
    assert all(np.array_equal(found[name], expected[name].numpy()) for name in found)


def test_switching_back_is_bit_exact(base, runner: Runner, arrays) -> None:
    first, second = (with_random_weights(make_adapter(base, kind), 1) for kind in ("houlsby", "parallel"))
    alone, a, b = (runner.run(arrays, adapter)["hidden"] for adapter in (None, first, second))
    again = [runner.run(arrays, adapter)["hidden"] for adapter in (first, None)]
    assert np.array_equal(a, again[0])
    assert np.array_equal(alone, again[1])
    assert not np.allclose(a, b)


def test_the_base_alone_has_no_logits(runner: Runner, arrays) -> None:
    assert runner.run(arrays, None).keys() == {"hidden", "pooled"}


def test_adapters_of_equal_names_are_not_confused(base, runner: Runner, arrays) -> None:
    made = [with_random_weights(make_adapter(base, name="same"), seed) for seed in (1, 2)]
    outputs = [runner.run(arrays, adapter)["logits"] for adapter in made]
    assert not np.allclose(*outputs)


def test_an_adapter_of_another_base_needs_permission(base, arrays) -> None:
    stranger = with_random_weights(make_adapter(base))
    object.__setattr__(stranger, "base", "sha256:" + "0" * 64)
    with pytest.raises(BaseMismatchError):
        TorchRunner(base).run(arrays, stranger)
    assert "logits" in TorchRunner(base, allow_mismatch=True).run(arrays, stranger)


def test_inputs_that_the_base_cannot_take_are_refused(runner: Runner, arrays) -> None:
    with pytest.raises(RequestError, match="do not match the base"):
        runner.run({"input_ids": arrays["input_ids"]}, None)
    with pytest.raises(RequestError, match="cannot compute"):
        runner.run({**arrays, "input_ids": arrays["input_ids"] + 1000}, None)


def test_adapters_of_equal_graphs_share_a_cached_model(base, arrays) -> None:
    first, second = (with_random_weights(make_adapter(base), seed) for seed in (1, 2))
    runner = TorchRunner(base)
    assert runner.model(first) is runner.model(second)
    names = [name for name in runner.node_dtypes(first) if "result" in name]
    alone = [found.value for found in runner.node_values(arrays, first, names)]
    walk = runner.node_values(arrays, first, names)
    between = [next(walk).value]
    expected = runner.run(arrays, second)["hidden"]
    between += [found.value for found in walk]
    assert len(alone) == 4
    assert all(np.array_equal(one, other) for one, other in zip(between, alone, strict=True))
    assert np.array_equal(runner.run(arrays, second)["hidden"], expected)
    assert not np.allclose(runner.run(arrays, first)["hidden"], expected)
