"""One text for several adapters: the part below them is computed once, and optionally cached for the next call."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from building import build_bundle
from small_bundle import WORDS, build_small
from tampering import rehash, unrecorded
from tiny_decoder import open_cached
from tiny_onnx import random_adapter

import adapter_export as ae
from adapter_export.errors import BaseModelError, FormatError, RequestError, UsageError
from adapter_export.format.manifest import Manifest
from adapter_export.format.manifest_json import write_manifest
from adapter_export.graph.kinds import pfeiffer
from adapter_export.numerics.sample_inputs import input_cases
from adapter_export.onnx_backend.onnx_runner import CutRunner
from adapter_export.onnx_backend.rewrite.fanout import cut_bank
from adapter_export.runtime import Bundle, Request
from adapter_export.runtime.graphs import open_session, run_session

NAMES = ("topic", "tone", None, "mood")
FORMS = ("slots", "inputs", "bank", "fanout")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base, next to its bundle."""
    return build_small(tmp_path_factory.mktemp("fan_out"), FORMS).model


@pytest.fixture(scope="module")
def bundle(model: Path) -> Bundle:
    return Bundle.open(model.parent / "bundle")


@pytest.fixture
def copy(bundle: Bundle, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle.folder, tmp_path / "bundle"))


def inputs(rows: int, tokens: int, seed: int = 0) -> dict[str, np.ndarray]:
    mask = np.ones((rows, tokens), np.int64)
    mask[1:, tokens // 2 :] = 0
    return {"ids": np.random.default_rng(seed).integers(0, WORDS, (rows, tokens)), "mask": mask}


def assert_same_bits(found: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


@pytest.mark.parametrize("rows", [1, 3])
def test_fan_out_equals_separate_calls(bundle: Bundle, rows: int) -> None:
    session, texts = bundle.session(threads=1), inputs(rows, 6)
    found = session.fan_out(texts, NAMES)
    assert tuple(found) == NAMES
    for name, outputs in found.items():
        alone = session.run(texts, name)  # the graph with slots adds up in another order
        assert {key: array.shape for key, array in outputs.items()} == {
            key: array.shape for key, array in alone.items()
        }
        for key, value in alone.items():
            np.testing.assert_allclose(outputs[key], value, rtol=0, atol=1e-5 * np.abs(value).max())
    assert np.abs(found["topic"]["hidden"] - found["tone"]["hidden"]).max() > 0.1


def test_the_two_graphs_give_the_bits_of_the_bank(bundle: Bundle) -> None:
    folder, fanout, texts = bundle.folder, bundle.manifest.fanout, inputs(3, 5)
    assert fanout is not None
    assert [value.axes[0] for value in fanout.values] == ["batch", "batch"]
    bank, upper, below = (
        open_session(folder / f"model.{form}.onnx", threads=1) for form in ("bank", "fanout", "prefix")
    )
    rows, ids = np.array([2, 0, 0, 1, 2, 2, 1]), np.array([0, 1, 2, 3, 3, 1, 0])
    values = run_session(below, texts)
    fed = {**texts, **values, "input_rows": rows, "adapter_ids": ids}
    found = run_session(upper, fed)
    assert_same_bits(found, run_session(bank, {**{n: a[rows] for n, a in texts.items()}, "adapter_ids": ids}))
    spoiled = {name: value.copy() for name, value in values.items()}
    for value in spoiled.values():
        value[1] = np.nan
    hurt = run_session(upper, {**fed, **spoiled})
    for name, value in found.items():
        assert np.isnan(hurt[name][rows == 1]).all()
        np.testing.assert_array_equal(hurt[name][rows != 1], value[rows != 1])
    for wrong in (3, -1):
        with pytest.raises(RequestError, match=r"(?s)cannot compute these inputs.*idx=\d+ must be within"):
            run_session(upper, {**fed, "input_rows": np.array([0, 0, 0, 0, 0, 0, wrong])})


def test_repeated_texts_reuse_the_prefix_cache(bundle: Bundle) -> None:
    kept, plain = bundle.session(threads=1, prefix_bytes=10_000), bundle.session(threads=1)
    one, other, longer = inputs(1, 6), inputs(1, 6, seed=1), inputs(1, 7)
    for name in NAMES:
        assert_same_bits(kept.run(one, name), plain.fan_out(one, [name, "topic"])[name])
    assert (kept.statistics.prefixes.loads, kept.statistics.prefixes.hits) == (1, 3)
    both = {name: np.concatenate([array, other[name], array]) for name, array in one.items()}
    mixed = kept.run(both, adapters=["tone", "mood", None])
    assert_same_bits({"hidden": mixed["hidden"][:1]}, {"hidden": kept.run(one, "tone")["hidden"]})
    assert_same_bits({"hidden": mixed["hidden"][1:2]}, {"hidden": kept.run(other, "mood")["hidden"]})
    kept.run({**one, "mask": np.array([[1, 1, 1, 1, 1, 0]])}, "tone")  # another mask is another text
    kept.run(longer, "tone")
    assert (kept.statistics.prefixes.loads, kept.statistics.prefixes.resident) == (4, 4)
    bytes_of_a_token = 2 * 16 * 4  # two values
    few = bundle.session(threads=1, prefix_bytes=2 * 6 * bytes_of_a_token)
    for text in (one, other, one, inputs(1, 6, seed=2), one, other):
        few.run(text, "tone")
    assert few.statistics.prefixes == type(few.statistics.prefixes)(hits=2, loads=4, evictions=2, resident=2)
    few.run(inputs(3, 6), "tone")  # more than it may keep
    assert few.statistics.prefixes.resident == 2


def test_alike_rows_of_many_requests_are_computed_once(bundle: Bundle) -> None:
    session, texts = bundle.session(threads=1, prefix_bytes=1), [inputs(1, 5), inputs(1, 5, seed=1)]
    requests = [Request(text, name) for name in ("topic", "mood") for text in texts]
    found = session.run_many(requests, token_budget=10)  # two calls, each with one text
    assert session.statistics.prefixes == type(session.statistics.prefixes)(loads=2, evictions=2)
    for request, outputs in zip(requests, found, strict=True):
        alone = bundle.session(threads=1).run(request.inputs, request.adapter)
        np.testing.assert_allclose(
            outputs["hidden"], alone["hidden"], rtol=0, atol=1e-5 * np.abs(alone["hidden"]).max()
        )


def test_loaded_adapters_take_part_in_fan_out(bundle: Bundle) -> None:
    session = bundle.session(threads=1)
    session.load("late", bundle.folder / "adapters/tone.onnx_adapter", labels=["a", "b"])
    found = session.fan_out(inputs(2, 4), ["late", "topic", "tone"])
    assert_same_bits(found["late"], found["tone"])


def test_a_prompt_of_a_decoder_and_its_cache_fan_out(tmp_path: Path) -> None:
    base = open_cached(tmp_path)
    adapters = [random_adapter(name, pfeiffer(), base, bottleneck=3) for name in ("a", "b")]
    cases, variants = input_cases(base.inputs, seed=0), ("slots", "bank", "fanout")
    manifest = build_bundle(
        base, adapters, tmp_path / "bundle", references=CutRunner(base), cases=cases, variants=variants
    )
    session = Bundle.open(tmp_path / "bundle").session(threads=1)
    caches = [record for record in manifest.inputs if record.role == "cache"]
    step = next(case.arrays for case in cases if all(case.arrays[record.name].size for record in caches))
    found = session.fan_out(step, ["a", "b"])
    for name, outputs in found.items():
        for key, value in session.run(step, name).items():
            np.testing.assert_allclose(outputs[key], value, rtol=0, atol=1e-5 * np.abs(value).max())
    assert not np.array_equal(found["a"]["hidden"], found["b"]["hidden"])


def test_fan_out_without_its_graph_gives_the_same_answers(bundle: Bundle, copy: Path) -> None:
    for name in ("prefix", "fanout"):
        (copy / f"model.{name}.onnx").unlink()
    graphs = {variant: path for variant, path in bundle.manifest.graphs.items() if variant != "fanout"}
    rehash(copy, lambda manifest: replace(unrecorded(manifest), graphs=graphs, fanout=None))
    plain, texts = Bundle.open(copy), inputs(2, 6)
    found = plain.session(threads=1).fan_out(texts, NAMES)
    for name, outputs in bundle.session(threads=1).fan_out(texts, NAMES).items():
        assert_same_bits(found[name], outputs)
    with pytest.raises(UsageError, match=r"cannot be cached.*found a bundle with `bank`, `inputs`, `slots`"):
        plain.session(prefix_bytes=1)


def test_bad_calls_are_named(bundle: Bundle) -> None:
    session, texts = bundle.session(threads=1), inputs(1, 4)
    for nothing in ([], "topic"):
        with pytest.raises(RequestError, match="`adapters` must be a list of names"):
            session.fan_out(texts, nothing)
    with pytest.raises(RequestError, match="adapter `nobody`: is not loaded"):
        session.fan_out(texts, ["topic", "nobody"])
    with pytest.raises(UsageError, match="-1"):
        bundle.session(prefix_bytes=-1)


def test_check_proves_the_cut_and_finds_faults(model: Path, bundle: Bundle, copy: Path) -> None:
    report = ae.check(bundle.folder, against=model, variants=["fanout"], cases=["batch3_tokens7"])
    assert report.passed
    assert {owed.status for owed in report.findings if owed.id.startswith(("cut/", "fan-out", "fanout-rows"))} == {
        "exact",
        "tested",
    }
    path = copy / "model.prefix.onnx"
    graph = onnx.load(path, load_external_data=False)
    node = next(node for node in graph.graph.node if node.op_type == "MatMul")
    node.input[1] = "k0_weight" if node.input[1] == "q0_weight" else "q0_weight"
    path.write_bytes(graph.SerializeToString())
    rehash(copy)
    report = ae.verify(copy)
    failed = {owed.id for owed in report.findings if owed.status == "failed"}
    assert "cut/model.prefix.onnx" in failed
    assert {one.variant for one in report.outputs if not one.passed} == {"fanout"}


def test_fan_out_follows_removed_adapters(bundle: Bundle, copy: Path) -> None:
    ae.remove(copy, ["topic"])
    assert ae.verify(copy).passed
    found = Bundle.open(copy).session(threads=1).fan_out(inputs(1, 4), ["mood", "tone"])
    before = bundle.session(threads=1).fan_out(inputs(1, 4), ["mood", "tone"])
    for name, outputs in before.items():
        np.testing.assert_allclose(found[name]["hidden"], outputs["hidden"], rtol=0, atol=1e-5)


def test_outputs_keep_their_shapes_where_others_must_be_inferred(bundle: Bundle) -> None:
    bank, record = ir.load(bundle.folder / "model.bank.onnx"), bundle.manifest.bank
    assert record is not None
    bank.graph.outputs[0].shape = ir.Shape(["batch", "tokens", "wide"])  # 16, as inference finds
    for node in bank.graph:
        if node.op_type == "Add" and not node.outputs[0].is_graph_output():
            node.outputs[0].shape = None
    cut = cut_bank(bank, record)
    assert [str(dim) for dim in cut.upper.graph.outputs[0].shape or ()] == ["rows", "tokens", "wide"]
    assert bundle.manifest.fanout is not None
    assert cut.values == bundle.manifest.fanout.values


def test_fan_out_refuses_banks_that_cannot_be_cut(bundle: Bundle) -> None:
    bank, record = ir.load(bundle.folder / "model.bank.onnx"), bundle.manifest.bank
    assert record is not None
    with pytest.raises(BaseModelError, match="no trained layer below the first adapter"):
        cut_bank(bank, replace(record, ids="ids"))  # as if the adapter acted on the words
    for value in (value for node in bank.graph for value in node.outputs):
        if value.shape is not None:
            value.shape = ir.Shape(["other" if str(dim) == "batch" else dim for dim in value.shape])
    with pytest.raises(BaseModelError, match=r"`MatMul` computes: does not record the batch axis .*one axis `batch`"):
        cut_bank(bank, record)
    with pytest.raises(UsageError, match="`fanout` is made from `bank`"):
        ae.build(bundle.folder.parent / "base.onnx", [], bundle.folder / "other", variants=("fanout",))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda said: replace(said, fanout=None), "needs a graph `bank`"),
        (lambda said: replace(said, fanout=replace(said.fanout, rows="ids")), "has the name of a data input"),
        (lambda said: replace(said, fanout=replace(said.fanout, rows=said.bank.ids)), "a name occurs twice"),
        (lambda said: replace(said, fanout=replace(said.fanout, prefix="none.onnx")), "undefined name"),
        (
            lambda said: replace(
                said, fanout=replace(said.fanout, values=(replace(said.fanout.values[0], axes=(1,)),))
            ),
            "needs one text axis",
        ),
    ],
)
def test_manifests_that_contradict_themselves_are_refused(
    bundle: Bundle, tmp_path: Path, change: Callable[[Manifest], Manifest], words: str
) -> None:
    with pytest.raises(FormatError, match=words):
        write_manifest(change(bundle.manifest), tmp_path)
