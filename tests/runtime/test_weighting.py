"""Weights of a fusion in a call: one mapping or one per row, complete, and in other programs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from building import build_bundle
from safetensors.numpy import load_file
from small_bundle import WORDS, Built, build_small

from adapter_export.errors import RequestError
from adapter_export.format.adapter_files import read_adapter
from adapter_export.format.manifest import MixRecord
from adapter_export.graph.compose import average, weighted_fusion
from adapter_export.numerics.sample_inputs import input_cases
from adapter_export.onnx_backend.onnx_runner import CutRunner
from adapter_export.runtime import Bundle, Request
from adapter_export.runtime.session import Session

RNG = np.random.default_rng(0)
INPUTS = {"ids": RNG.integers(0, WORDS, (3, 7)), "mask": np.ones((3, 7), np.int64)}
OWN = {"topic": 0.9, "tone": -0.4}
OTHER = {"tone": 1.5, "topic": 0.25}


@dataclass(frozen=True)
class Fused:
    """A bundle with two fusions of the same members and different weights."""

    folder: Path
    small: Built

    def session(self, **options: bool) -> Session:
        return Bundle.open(self.folder).session(**options)

    def mix(self, name: str) -> MixRecord | None:
        found = next(record for record in Bundle.open(self.folder).manifest.adapters if record.name == name)
        return found.mix


@pytest.fixture(scope="module")
def fused(tmp_path_factory: pytest.TempPathFactory) -> Fused:
    folder = tmp_path_factory.mktemp("fused")
    small = build_small(folder)
    topic, tone = (read_adapter(small.folder / "adapters" / name) for name in ("topic", "tone"))
    adapters = [
        topic,
        weighted_fusion(topic, tone, name="fused", weights=OWN, head="tone"),
        weighted_fusion(topic, tone, name="fixed", weights=OTHER, head="tone"),
        average(topic, tone, name="mean"),
    ]
    cases = input_cases(small.base.inputs, seed=1, shapes=[{"batch": 3, "tokens": 7}])
    build_bundle(small.base, adapters, folder / "both", references=CutRunner(small.base), cases=cases)
    return Fused(folder / "both", small)


@pytest.fixture(scope="module")
def session(fused: Fused) -> Session:
    return fused.session()


def test_weights_for_all_rows_are_those_of_a_fusion_with_these_weights(fused: Fused, session: Session) -> None:
    for one in (session, fused.session(on_demand=True)):
        found, wanted = one.run(INPUTS, "fused", weights=OTHER), one.run(INPUTS, "fixed")
        own = one.run(INPUTS, "fused")
        assert found.keys() == wanted.keys()
        assert all(np.array_equal(found[name], wanted[name]) for name in wanted)
        assert all(np.array_equal(one.run(INPUTS, "fused", weights=OWN)[name], own[name]) for name in own)
        assert np.abs(own["hidden"] - wanted["hidden"]).max() > 0.01
        assert one.classify(INPUTS, "fused", weights=OTHER) == one.classify(INPUTS, "fixed")


def test_each_row_may_have_its_own_fusion_weights(session: Session) -> None:
    rows = [OWN, {"topic": 0, "tone": 0}, OTHER]
    found = session.run(INPUTS, "fused", weights=rows)["hidden"]
    for index, wanted in enumerate(session.run(INPUTS, name)["hidden"] for name in ("fused", None, "fixed")):
        np.testing.assert_allclose(found[index], wanted[index], rtol=0, atol=2e-6)
    alone = session.run({name: array[:1] for name, array in INPUTS.items()}, "fused", weights=[OTHER])
    np.testing.assert_allclose(alone["hidden"][0], session.run(INPUTS, "fixed")["hidden"][0], rtol=0, atol=2e-6)


def test_manifest_records_slots_and_defaults_of_fusion_weights(fused: Fused) -> None:
    """Only one member acts at attention, so there are two slots for weights."""
    expected = MixRecord(
        ("adapter.shared.weighted_fusion.mix.weights", "adapter.shared.weighted_fusion_2.mix.weights"),
        ("topic", "tone"),
    )
    assert fused.mix("fused") == fused.mix("fixed") == expected
    assert fused.mix("topic") is None
    assert fused.mix("mean") is None


@pytest.mark.parametrize("variant", ["slots", "inputs"])
def test_plain_onnxruntime_can_feed_fusion_weights(fused: Fused, session: Session, variant: str) -> None:
    manifest, mix = Bundle.open(fused.folder).manifest, fused.mix("fused")
    assert mix is not None
    graph = ort.InferenceSession(str(fused.folder / manifest.graphs[variant]))
    weights = np.array([[row[member] for member in mix.members] for row in (OWN, OTHER, OTHER)], np.float32)
    feeds = {**INPUTS, **load_file(fused.folder / "adapters/fused.safetensors"), **dict.fromkeys(mix.slots, weights)}
    found = graph.run(["hidden"], feeds)[0]
    wanted = session.run(INPUTS, "fused", weights=[OWN, OTHER, OTHER])["hidden"]
    np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-6)


def test_run_on_device_accepts_fusion_weights(session: Session) -> None:
    found = session.run_on_device(INPUTS, "fused", weights=OTHER)["hidden"].numpy()
    np.testing.assert_array_equal(found, session.run(INPUTS, "fused", weights=OTHER)["hidden"])


REFUSED = {
    "a finite weight for each of its members; found `topic`: 1; expected `topic`, `tone`": {"topic": 1},
    "found `topic`: 1, `tone`: 1, `mood`: 1": {"topic": 1, "tone": 1, "mood": 1},
    "found `topic`: nan": {"topic": float("nan"), "tone": 1},
    "found `topic`: 1e+39": {"topic": 1e39, "tone": 1},
    "row 1: a fusion needs": [OWN, {"tone": 1}, OWN],
    "one choice for each row; found 2; expected 3": [OWN, OWN],
    "one choice for each row; found 0; expected 3": [],
}


@pytest.mark.parametrize("words", REFUSED)
def test_wrong_weights_are_refused(session: Session, words: str) -> None:
    for call in (session.run, session.classify):
        with pytest.raises(RequestError) as caught:
            call(INPUTS, "fused", weights=REFUSED[words])
        assert words in str(caught.value)


def test_weights_for_adapters_without_a_fusion_are_refused(fused: Fused) -> None:
    session = fused.session()
    session.load("loaded", fused.folder / "adapters/fused.onnx_adapter")
    for name in ("topic", "mean", "loaded"):
        with pytest.raises(RequestError, match=f"adapter `{name}`: has no weights that a call could give"):
            session.run(INPUTS, name, weights=OWN)
    for choice in ({}, {"adapters": ["fused"] * 3}):
        with pytest.raises(RequestError, match="weights are those of a fusion's members"):
            session.run(INPUTS, weights=OWN, **choice)
    mixed = session.classify(INPUTS, adapters=["fused"] * 3, weights=OWN)  # answers equal those of single rows
    assert mixed == session.classify(INPUTS, "fused", weights=OWN)
    with pytest.raises(RequestError, match="adapter `topic`: has no weights that a call could give"):
        session.classify(INPUTS, adapters=["fused", "topic", "fused"], weights=OWN)


def test_rows_that_influence_each_other_have_the_same_weights(fused: Fused) -> None:
    bundle = Bundle.open(fused.folder)
    session = replace(bundle, manifest=replace(bundle.manifest, batch_invariant=False)).session()
    with pytest.raises(RequestError, match="influence each other"):
        session.run(INPUTS, "fused", weights=[OWN, OWN, OTHER])
    session.run(INPUTS, "fused", weights=[OWN, OWN, OTHER], allow_mixed_rows=True)
    session.run(INPUTS, "fused", weights=[OWN, OWN, OWN])
    session.run(INPUTS, "fused", weights=OTHER)


def test_fusions_stand_in_mixed_batches_beside_adapters_that_were_loaded_later(fused: Fused) -> None:
    """A bank set at run time, and batched requests: the trial run passes weights for one row."""
    session = fused.session()
    session.load("later", fused.folder / "adapters/topic.onnx_adapter")
    rows = ["fused", "later", "fixed"]
    mixed = session.run(INPUTS, adapters=rows)["hidden"]
    requests = [Request({name: array[:1] for name, array in INPUTS.items()}, name) for name in rows]
    many = session.run_many(requests)
    for index, name in enumerate(rows):
        alone = session.run(INPUTS, name)["hidden"][index]
        np.testing.assert_allclose(mixed[index], alone, rtol=0, atol=2e-6)
        np.testing.assert_allclose(
            many[index]["hidden"][0], session.run(requests[index].inputs, name)["hidden"][0], rtol=0, atol=2e-6
        )
