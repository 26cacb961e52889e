"""Plain tensors become an adapter, or every fault of theirs is named."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from heads import heads

from adapter_export.bases.base_view import BaseView
from adapter_export.errors import AdapterError, TensorError, UsageError
from adapter_export.graph.heads import HeadOptions
from adapter_export.graph.kinds import KINDS
from adapter_export.onnx_backend.slots import topology_key
from adapter_export.plugins.formats.importers.plain_tensors import fitting_kind, pack
from adapter_export.sites.site import Site, SiteMap

D, B = 6, 3


def _site(layer: int, role: str) -> Site:
    name = f"layers.{layer}.{role}"
    values = [f"{name}.h", f"{name}.x", f"{name}.x", f"{name}.y"]
    return Site(name, role, layer, D, D, *values, None, f"{name}.add", None, "norm")


SITES = SiteMap(tuple(_site(layer, role) for layer in range(2) for role in ("attention", "ffn")), "final", D)


def _tensors(kind: str = "houlsby", bias: bool = True, dtype: str = "float32") -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = {"down.weight": (D, B), "down.bias": (B,), "up.weight": (B, D), "up.bias": (D,)}
    roles = ("attention", "ffn") if kind == "houlsby" else ("ffn",)
    return {
        f"{site.name}.{name}": rng.normal(0, 0.2, shape).astype(dtype)
        for site in SITES.of_roles(roles)
        for name, shape in shapes.items()
        if bias or "bias" not in name
    }


def _head(classes: int = 4) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    return {
        "head.classifier.weight": rng.normal(0, 0.2, (D, classes)).astype("float32"),
        "head.classifier.bias": rng.normal(0, 0.2, classes).astype("float32"),
    }


def _pack(tensors: dict[str, np.ndarray], kind: str = "houlsby", labels: tuple[str, ...] | None = None, **head: Any):
    made = fitting_kind(tensors, kind, activation="relu")
    return pack(tensors, made, BaseView("f" * 64, SITES), name="a", labels=labels, **head)


@pytest.mark.parametrize("kind", ["houlsby", "pfeiffer", "parallel"])
def test_the_tensors_are_the_adapters_weights(kind: str) -> None:
    tensors = _tensors(kind)
    adapter = _pack(tensors, kind).adapter
    assert adapter.kind == kind
    assert set(adapter.weights) == set(tensors)
    assert all(np.array_equal(adapter.weights[name], tensors[name]) for name in tensors)
    assert all(placement.widths["b"] == B for placement in adapter.placements.values())


def test_the_head_and_its_labels_come_along() -> None:
    adapter = _pack(_tensors() | _head(), labels=("a", "b", "c", "d")).adapter
    assert adapter.head is not None
    assert adapter.head.labels == ("a", "b", "c", "d")
    assert adapter.head.widths == {"d": D, "classes": 4}


def test_each_site_has_its_own_width() -> None:
    tensors = _tensors("pfeiffer")
    tensors["layers.1.ffn.down.weight"] = np.ones((D, 5), "float32")
    tensors["layers.1.ffn.down.bias"] = np.ones(5, "float32")
    tensors["layers.1.ffn.up.weight"] = np.ones((5, D), "float32")
    adapter = _pack(tensors, "pfeiffer").adapter
    assert [placement.widths["b"] for placement in adapter.placements.values()] == [B, 5]


def test_biases_may_be_left_out() -> None:
    assert _pack(_tensors(bias=False)).adapter.cost().parameters == 4 * 2 * D * B


@pytest.mark.parametrize(("dtype", "word"), [("float16", "without loss"), ("float64", "rounded once")])
def test_other_float_types_are_converted_with_a_word(dtype: str, word: str) -> None:
    tensors = _tensors(dtype=dtype)
    packed = _pack(tensors)
    assert all(weight.dtype == np.float32 for weight in packed.adapter.weights.values())
    (note,) = packed.notes
    assert note.startswith(f"16 tensors of {dtype} converted to float32")
    assert note.endswith(word)
    assert np.array_equal(packed.adapter.weights["layers.0.ffn.up.bias"], tensors["layers.0.ffn.up.bias"].astype("f4"))


def test_float32_tensors_are_packed_without_notes() -> None:
    assert _pack(_tensors()).notes == ()


def test_all_faults_are_listed_at_once() -> None:
    tensors = _tensors()
    for name in [name for name in tensors if name.startswith("layers.1.attention.")]:
        del tensors[name]
    del tensors["layers.0.ffn.up.bias"]
    tensors["layers.0.ffn.up.biass"] = np.ones(D, "float32")
    tensors["layers.0.attention.up.weight"] = np.ones((B, D + 1), "float32")
    tensors["layers.1.ffn.down.weight"][0, 0] = np.nan
    with pytest.raises(TensorError) as caught:
        _pack(tensors)
    message = str(caught.value)
    assert "5 of the tensors do not fit" in message
    assert "every tensor of `layers.1.attention` is missing" in message
    assert "`layers.0.ffn.up.bias` is missing" in message
    assert "`layers.0.ffn.up.biass` is unknown, did you mean `layers.0.ffn.up.bias`?" in message
    assert f"`layers.0.attention.up.weight` has shape [{B}, {D + 1}], not [{B}, {D}]" in message
    assert "`layers.1.ffn.down.weight` contains 1 NaN" in message


def test_transposed_weights_are_recognised() -> None:
    tensors = {name: tensor.T if tensor.ndim == 2 else tensor for name, tensor in _tensors().items()}
    with pytest.raises(TensorError, match="looks transposed") as caught:
        _pack(tensors)
    assert str(caught.value).count("looks transposed") == 8
    assert "8 of the tensors" in str(caught.value)


@pytest.mark.parametrize("value", [np.inf, np.nan, 1e300])
def test_numbers_that_float32_does_not_hold_are_refused(value: float) -> None:
    tensors = _tensors(dtype="float64")
    tensors["layers.0.ffn.up.weight"][1, 1] = value
    with pytest.raises(TensorError, match="contains 1 NaN, Inf or numbers beyond float32"):
        _pack(tensors)


def test_integers_and_empty_tensors_are_refused() -> None:
    tensors = _tensors()
    tensors["layers.0.ffn.up.bias"] = np.ones(D, "int64")
    tensors["layers.0.ffn.down.bias"] = np.ones(0, "float32")
    with pytest.raises(TensorError) as caught:
        _pack(tensors)
    assert "`layers.0.ffn.up.bias` is int64" in str(caught.value)
    assert "`layers.0.ffn.down.bias` has an empty shape [0]" in str(caught.value)


def test_a_width_of_zero_is_refused() -> None:
    tensors = _tensors("pfeiffer")
    for site in ("layers.0.ffn", "layers.1.ffn"):
        tensors |= {
            f"{site}.down.weight": np.ones((D, 0), "float32"),
            f"{site}.down.bias": np.ones(0, "float32"),
            f"{site}.up.weight": np.ones((0, D), "float32"),
        }
    with pytest.raises(TensorError, match="empty shape"):
        _pack(tensors, "pfeiffer")


def test_labels_and_head_belong_together() -> None:
    with pytest.raises(UsageError, match="Pass `labels`"):
        _pack(_tensors() | _head())
    with pytest.raises(UsageError, match="no tensors belong to a head"):
        _pack(_tensors(), labels=("a", "b"))
    with pytest.raises(TensorError, match=rf"`head.classifier.weight` has shape \[{D}, 4\], not \[{D}, 2\]"):
        _pack(_tensors() | _head(), labels=("a", "b"))
    with pytest.raises(AdapterError, match="not one name for each class"):
        _pack(_tensors() | _head(2), labels=("a", "a"))


def test_a_base_without_such_sites_is_refused() -> None:
    attention = SiteMap(SITES.of_roles(("attention",)), "final", D)
    kind = KINDS["pfeiffer"]()
    with pytest.raises(AdapterError, match="no site for kind `pfeiffer`; found attention; expected ffn"):
        pack(_tensors("pfeiffer"), kind, BaseView("f" * 64, attention), name="a")


@pytest.mark.parametrize("name", heads(D))
def test_heads_of_every_task_are_read_off_their_tensors(name: str) -> None:
    head = heads(D)[name]
    rng = np.random.default_rng(0)
    shapes = head.graph.parameter_shapes(head.widths)
    tensors = {f"head.{key}": rng.normal(0, 0.2, shape).astype(np.float32) for key, shape in shapes.items()}
    pooling = "first" if head.graph.nodes[0].op == "first_token" else "mean"
    ops = [node.op for node in head.graph.nodes]
    look = HeadOptions(pooling, activation="gelu" if "gelu" in ops else "tanh", l2_normalise="l2_normalise" in ops)
    made = _pack(_tensors() | tensors, labels=head.labels or None, task=head.task.type, look=look).adapter.head
    assert made is not None
    assert (made.task, made.labels, made.widths) == (head.task, head.labels, head.widths)
    assert topology_key(made.graph) == topology_key(head.graph)


def test_labels_and_task_belong_together() -> None:
    with pytest.raises(UsageError, match="`regression` has no classes"):
        _pack(_tensors() | _head(), labels=("a", "b", "c", "d"), task="regression")
    with pytest.raises(UsageError, match="the head has classes but no labels"):
        _pack(_tensors() | _head(), task="token")
    with pytest.raises(TensorError, match="every tensor of `head` is missing"):
        _pack(_tensors(), task="regression")
