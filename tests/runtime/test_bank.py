"""Mixed batches: each row with its own adapter, while adapters are added and removed."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from building import build_bundle
from inner_norm import with_inner_norm
from tiny_onnx import random_adapter, save_tiny, token_inputs

from adapter_export.errors import FileError, HashError, RequestError
from adapter_export.graph.kinds import pfeiffer
from adapter_export.numerics.sample_inputs import input_cases
from adapter_export.onnx_backend.base.onnx_base import open_onnx
from adapter_export.onnx_backend.onnx_runner import CutRunner
from adapter_export.runtime import Bundle, Request, Session

INPUTS = token_inputs(5, 3, 1, 7, 2)
ROWS = ("narrow", None, "wide", "plain", "pfeiffer")


def _row(inputs: dict[str, np.ndarray], index: int) -> dict[str, np.ndarray]:
    return {name: array[index : index + 1] for name, array in inputs.items()}


def _holds(session: Session, rows: tuple[str | None, ...], inputs: dict[str, np.ndarray]) -> None:
    """Each row of a mixed batch equals the single result of its adapter."""
    found = session.run(inputs, adapters=rows)
    for index, name in enumerate(rows):
        alone = session.run(_row(inputs, index), name)
        for output, array in found.items():
            if output not in alone:
                assert np.isnan(array[index]).all()
                continue
            own = alone[output][0]
            np.testing.assert_allclose(array[index][..., : own.shape[-1]], own, rtol=0, atol=1e-5)
            assert np.isneginf(array[index][..., own.shape[-1] :]).all()


class TestMixedBatch:
    def test_each_row_runs_through_its_own_adapter(self, session: Session) -> None:
        _holds(session, ROWS, INPUTS)
        _holds(session, tuple(reversed(ROWS)), INPUTS)

    def test_heads_are_as_wide_as_their_rows_need(self, session: Session) -> None:
        inputs = token_inputs(4, 4)
        assert session.run(inputs, adapters=["wide", "pfeiffer"])["logits"].shape == (2, 2)
        assert session.run(inputs, adapters=["wide", "narrow"])["logits"].shape == (2, 3)
        assert list(session.run(inputs, adapters=[None, "plain"])) == ["hidden"]

    def test_rows_are_classified_with_labels_of_their_adapter(self, session: Session) -> None:
        inputs = token_inputs(4, 6, 2)
        found = session.classify(inputs, adapters=["narrow", "wide", "pfeiffer"])
        alone = [session.classify(_row(inputs, i), name)[0] for i, name in enumerate(("narrow", "wide", "pfeiffer"))]
        assert [each.label for each in found] == [each.label for each in alone]
        for one, other in zip(found, alone, strict=True):
            assert list(one.probabilities) == list(other.probabilities)
            assert one.probability == pytest.approx(other.probability, abs=1e-5)

    def test_classify_refuses_rows_without_labels(self, session: Session) -> None:
        with pytest.raises(RequestError, match="the base by itself cannot do"):
            session.classify(token_inputs(2, 2), adapters=["wide", None])  # type: ignore[list-item]
        with pytest.raises(RequestError, match="adapter `plain`"):
            session.classify(token_inputs(2, 2), adapters=["wide", "plain"])

    def test_number_of_adapters_must_match_the_rows(self, session: Session) -> None:
        with pytest.raises(RequestError, match="found 2; expected 5"):
            session.run(INPUTS, adapters=["wide", None])
        with pytest.raises(RequestError, match="adapter `wid`"):
            session.run(token_inputs(2), adapters=["wid"])
        with pytest.raises(RequestError, match="one call has one choice"):
            session.run(token_inputs(2), "wide", adapters=["wide"])

    def test_rows_that_influence_each_other_are_not_mixed(self, bundle: Bundle) -> None:
        dependent = replace(bundle, manifest=replace(bundle.manifest, batch_invariant=False)).session()
        with pytest.raises(RequestError, match="influence each other"):
            dependent.run(INPUTS, adapters=ROWS)
        expected = dependent.run(INPUTS, "wide")["hidden"]
        found = dependent.run(INPUTS, adapters=["wide"] * 5)["hidden"]
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
        assert dependent.run(INPUTS, adapters=ROWS, allow_mixed_rows=True)["hidden"].shape == (5, 7, 16)

    def test_bundles_without_a_bank_refuse_mixed_batches(self, bundle: Bundle) -> None:
        manifest = replace(bundle.manifest, graphs={"slots": bundle.manifest.graphs["slots"]}, bank=None)
        plain = replace(bundle, manifest=manifest).session()
        with pytest.raises(RequestError, match=r"no graph for rows of one batch.*variants=.*slots.*inputs.*bank"):
            plain.run(INPUTS, adapters=ROWS)


def _load_all(session: Session, bundle: Bundle, *, on_demand: bool = False) -> dict[str, str]:
    """Load every adapter again under another name, outside the bundle's bank."""
    names = {}
    for record in bundle.manifest.adapters:
        names[f"{record.name}.again"] = record.name
        session.load(f"{record.name}.again", bundle.folder / record.onnx_adapter, task=record.task, on_demand=on_demand)
    return names


class TestLoadedAdapters:
    @pytest.mark.parametrize("on_demand", [False, True])
    def test_loaded_adapters_join_mixed_batches(self, session: Session, bundle: Bundle, on_demand: bool) -> None:
        _load_all(session, bundle, on_demand=on_demand)
        for name in ("plain", "narrow", "wide"):  # the table grows with the wider ones
            _holds(session, (f"{name}.again", None, "pfeiffer", f"{name}.again", "narrow"), INPUTS)
        _holds(session, ("narrow.again", "wide.again", None, "plain.again", "pfeiffer.again"), INPUTS)

    def test_a_name_that_changes_hands_does_not_find_the_old_weights(self, session: Session, bundle: Bundle) -> None:
        before = session.run(INPUTS, adapters=ROWS)["hidden"]
        session.unload("narrow")
        session.load("narrow", bundle.folder / "adapters/wide.onnx_adapter", labels=("yes", "no"))
        after = session.run(INPUTS, adapters=ROWS)["hidden"]
        assert np.abs(before[0] - after[0]).max() > 0.01
        _holds(session, ROWS, INPUTS)

    def test_the_least_recently_used_one_makes_room(self, bundle: Bundle) -> None:
        session = bundle.session(threads=1, resident=2)
        _load_all(session, bundle)
        inputs = token_inputs(3, 4)
        for rows in (("wide", "narrow"), ("narrow", "plain"), ("plain", "wide"), ("plain", "wide"), ("narrow", None)):
            _holds(session, tuple(name and f"{name}.again" for name in rows), inputs)
        counts = session.statistics.bank
        assert (counts.loads, counts.hits, counts.evictions, counts.resident) == (5, 4, 3, 2)

    def test_calls_with_too_many_adapters_are_refused(self, bundle: Bundle) -> None:
        session = bundle.session(threads=1, resident=2)
        names = list(_load_all(session, bundle))
        with pytest.raises(RequestError, match=r"found 3; expected at most 2.*larger `resident`"):
            session.run(token_inputs(1, 1, 1), adapters=names[:3])
        _holds(session, ("wide", *names[:1]), token_inputs(2, 2))

    def test_built_adapters_alone_need_no_table(self, session: Session) -> None:
        session.run(INPUTS, adapters=ROWS)
        assert session.statistics.bank.resident == 0


def _shortened(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _emptied(path: Path) -> None:
    os.truncate(path, 0)


def _exchanged(path: Path) -> None:
    """The new file has the same size and other results."""
    data = path.read_bytes()
    other = path.with_name("other")
    other.write_bytes(data[:-4] + b"\0\0\0\0")
    other.replace(path)


class TestOnDemand:
    def test_adapter_files_are_read_on_demand(self, bundle: Bundle) -> None:
        session = bundle.session(threads=1, on_demand=True, resident=1)
        assert session.statistics.files.loads == 0
        assert session.labels("narrow") == ("red", "green", "blue")
        expected = bundle.session(threads=1)
        for name in ("wide", "wide", "narrow", None, "wide"):
            np.testing.assert_array_equal(session.run(INPUTS, name)["hidden"], expected.run(INPUTS, name)["hidden"])
        counts = session.statistics.files
        assert (counts.loads, counts.hits, counts.evictions, counts.resident) == (3, 1, 2, 1)

    @pytest.mark.parametrize("resident", [2, 300], ids=["mapped", "read"])
    def test_a_file_may_change_and_go(self, bundle: Bundle, tmp_path: Path, resident: int) -> None:
        session, folder = bundle.session(threads=1, resident=resident), bundle.home
        other = bundle.session(threads=1)
        other.load("late", bundle.folder / "adapters/narrow.onnx_adapter", on_demand=True)
        before, path = set(folder.iterdir()), tmp_path / "a.onnx_adapter"
        path.write_bytes((bundle.folder / "adapters/wide.onnx_adapter").read_bytes())
        session.load("late", path, on_demand=True)
        path.write_bytes((bundle.folder / "adapters/narrow.onnx_adapter").read_bytes())
        expected = session.run(INPUTS, "wide")["hidden"]
        for _ in range(2):
            np.testing.assert_array_equal(session.run(INPUTS, "late")["hidden"], expected)
            np.testing.assert_array_equal(other.run(INPUTS, "late")["hidden"], other.run(INPUTS, "narrow")["hidden"])
            np.testing.assert_allclose(session.run(INPUTS, adapters=["late"] * 5)["hidden"], expected, atol=1e-5)
        session.load("idle", path, on_demand=True)
        assert len(set(folder.iterdir()) - before) == 2
        session.unload("idle")
        assert len(set(folder.iterdir()) - before) == 1

    @pytest.mark.parametrize("resident", [1, 300], ids=["mapped", "read"])
    @pytest.mark.parametrize("change", [_shortened, _emptied, _exchanged, Path.unlink])
    def test_a_private_copy_that_somebody_touched_is_named(
        self, bundle: Bundle, resident: int, change: Callable[[Path], None]
    ) -> None:
        own = Bundle.open(bundle.folder)
        session = own.session(threads=1, on_demand=True, resident=resident)
        session.load("late", bundle.folder / "adapters/narrow.onnx_adapter", on_demand=True)
        if resident == 1:
            session.run(INPUTS, "narrow")
            session.run(INPUTS, "late")
        expected = session.run(INPUTS, "wide")["hidden"]
        (copy,) = own.home.glob("on-demand-*")
        for name, path in (("narrow", own.home / "adapters/narrow.onnx_adapter"), ("late", copy)):
            change(path)
            with pytest.raises(FileError, match=r"private copy of an adapter has changed.*Open the bundle again"):
                session.run(INPUTS, name)
        np.testing.assert_array_equal(session.run(INPUTS, "wide")["hidden"], expected)

    def test_an_adapter_that_comes_often_stays(self, bundle: Bundle) -> None:
        session = bundle.session(threads=1, resident=2)
        names = list(_load_all(session, bundle, on_demand=True))
        for name in (*names[:1] * 4, *names[1:], names[0]):
            session.run(INPUTS, name)
            session.run(INPUTS, adapters=[name] * 5)
        for counts in (session.statistics.files, session.statistics.bank):
            assert counts.loads == counts.evictions + 2
        assert session.statistics.bank.loads == len(names)

    def test_a_file_that_changed_is_refused(self, bundle: Bundle, tmp_path: Path) -> None:
        session = Bundle.open(bundle.folder, copy=False).session(threads=1)
        path = tmp_path / "a.onnx_adapter"
        path.write_bytes((bundle.folder / "adapters/wide.onnx_adapter").read_bytes())
        session.load("late", path, on_demand=True)
        path.write_bytes((bundle.folder / "adapters/narrow.onnx_adapter").read_bytes())
        for call in ({"adapter": "late"}, {"adapters": ["late"] * 5}):
            with pytest.raises(HashError):
                session.run(INPUTS, **call)  # type: ignore[arg-type]


def test_threads_wait_for_free_bank_rows(bundle: Bundle) -> None:
    session = bundle.session(threads=1, resident=3)
    names = list(_load_all(session, bundle))
    inputs = token_inputs(3, 2)
    expected = {name: session.run(inputs, name)["hidden"] for name in names}

    def work(seed: int) -> int:
        rng = np.random.default_rng(seed)
        for _ in range(50):
            rows = [names[index] for index in rng.integers(len(names), size=2)]
            found = session.run(inputs, adapters=rows)["hidden"]
            for index, name in enumerate(rows):
                np.testing.assert_allclose(found[index], expected[name][index], rtol=0, atol=1e-5)
        return seed

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, range(8))) == list(range(8))
    counts = session.statistics.bank
    assert counts.evictions > 10
    assert counts.loads == counts.evictions + counts.resident


def test_adapters_that_zeros_cannot_fill_up_do_not_join(tmp_path: Path) -> None:
    """A norm over the bottleneck: adapters of one width share a bank, and no other may join it."""
    base = open_onnx(save_tiny(tmp_path))
    adapters = [with_inner_norm(random_adapter(name, pfeiffer(), base, bottleneck=4, labels="ab")) for name in "ab"]
    cases = input_cases(base.inputs, seed=0, shapes=[{"batch": 2, "tokens": 5}])
    build_bundle(base, adapters, tmp_path / "bundle", references=CutRunner(base), cases=cases)
    bundle = Bundle.open(tmp_path / "bundle")
    session = bundle.session(threads=1)
    _holds(session, ("a", "b", None), token_inputs(3, 4, 2))
    session.load("c", bundle.folder / "adapters/a.onnx_adapter", labels=["a", "b"])
    with pytest.raises(RequestError, match="padding their tensors with zeros changes their results"):
        session.run(token_inputs(3, 2), adapters=["a", "c"])
    requests = [Request(token_inputs(3 + seed, seed=seed), name) for seed, name in enumerate(("a", "c", "b"))]
    for request, found in zip(requests, session.run_many(requests), strict=True):
        expected = session.run(request.inputs, request.adapter)["logits"]
        np.testing.assert_allclose(found["logits"], expected, rtol=0, atol=1e-5)
