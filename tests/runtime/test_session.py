from __future__ import annotations

import gc
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from tiny_onnx import build_tiny, mixed_adapters, random_adapter, save_tiny, tiny_model, token_inputs

from adapter_export.bundle.write import model_version
from adapter_export.errors import AdapterError, FileError, FormatError, RequestError, TensorError
from adapter_export.format.tensors import read_tensors
from adapter_export.graph.kinds import BottleneckOptions, houlsby
from adapter_export.onnx_backend.base.onnx_base import open_onnx
from adapter_export.onnx_backend.onnx_runner import CutRunner
from adapter_export.onnx_backend.slots import plan_slots, slot_tensors
from adapter_export.runtime import Bundle, Session
from adapter_export.runtime.adapter_file import write_adapter_file

INPUTS = token_inputs(5, 3, 1)
NAMES = (None, "wide", "narrow", "pfeiffer", "plain")

Tensors = dict[str, np.ndarray]


def _tensors(bundle: Bundle, name: str) -> Tensors:
    return read_tensors(bundle.folder / f"adapters/{name}.safetensors")


def _write(path: Path, tensors: Tensors, version: int | None = None) -> Path:
    """Write an adapter file with ONNX Runtime, valid or not."""
    adapter = ort.AdapterFormat()
    if version is not None:
        adapter.set_model_version(version)
    adapter.set_parameters({name: ort.OrtValue.ortvalue_from_numpy(value) for name, value in tensors.items()})
    adapter.export_adapter(str(path))
    return path


class TestRun:
    def test_no_adapter_is_the_untouched_base(self, session: Session, tmp_path: Path) -> None:
        path = save_tiny(tmp_path)
        untouched = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, INPUTS)[0]
        found = session.run(INPUTS)
        assert list(found) == ["hidden"]
        np.testing.assert_allclose(found["hidden"], untouched, rtol=0, atol=2e-6)

    def test_an_adapter_with_a_head_gives_logits_and_one_without_does_not(self, session: Session) -> None:
        assert session.run(INPUTS, "wide")["logits"].shape == (3, 2)
        assert session.run(INPUTS, "narrow")["logits"].shape == (3, 3)
        assert list(session.run(INPUTS, "plain")) == ["hidden"]

    def test_switching_back_is_bit_exact(self, session: Session) -> None:
        first = {name: session.run(INPUTS, name) for name in NAMES}
        gc.collect()
        for name in (*NAMES, *reversed(NAMES)):
            for output, expected in first[name].items():
                np.testing.assert_array_equal(session.run(INPUTS, name)[output], expected)

    def test_adapters_give_different_results(self, session: Session) -> None:
        found = [session.run(INPUTS, name)["hidden"] for name in NAMES]
        for index, one in enumerate(found):
            for other in found[index + 1 :]:
                assert np.abs(one - other).max() > 0.01

    @pytest.mark.parametrize("optimization", ["all", "basic", "none"])
    def test_golden_vectors_hold_at_every_level(self, bundle: Bundle, optimization: str) -> None:
        session = bundle.session(optimization=optimization)  # type: ignore[arg-type]
        records = {None: bundle.manifest.golden, **{a.name: a.golden for a in bundle.manifest.adapters}}
        for name, golden in records.items():
            tensors = read_tensors(bundle.folder / golden.path)
            for case in golden.cases:
                given = {i.name: tensors[f"{case}.input.{i.name}"] for i in bundle.manifest.inputs}
                found = session.run(given, name)
                for output, allowed in golden.absolute.items():
                    expected = tensors[f"{case}.output.{output}"]
                    np.testing.assert_allclose(found[output], expected, rtol=0, atol=allowed)

    def test_run_accepts_one_row_of_one_token(self, session: Session) -> None:
        assert session.run(token_inputs(1), "wide")["hidden"].shape == (1, 1, 16)

    def test_rows_do_not_depend_on_each_other(self, session: Session) -> None:
        alone = [session.run({name: array[i : i + 1] for name, array in INPUTS.items()}, "wide") for i in range(3)]
        together = session.run(INPUTS, "wide")
        for output, found in together.items():
            expected = np.concatenate([one[output] for one in alone])
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)

    def test_run_accepts_any_layout_and_read_only_arrays(self, session: Session) -> None:
        expected = session.run(INPUTS, "wide")["hidden"]
        turned = {name: np.asfortranarray(array) for name, array in INPUTS.items()}
        for array in turned.values():
            array.setflags(write=False)
        np.testing.assert_array_equal(session.run(turned, "wide")["hidden"], expected)

    def test_outputs_belong_to_the_caller(self, session: Session) -> None:
        first = session.run(INPUTS, "wide")["hidden"]
        kept = first.copy()
        for name in NAMES:
            session.run(token_inputs(30, 7), name)
        gc.collect()
        np.testing.assert_array_equal(first, kept)

    def test_unknown_adapters_are_refused_with_suggestions(self, session: Session) -> None:
        with pytest.raises(RequestError, match=r"adapter `wid`.*`wide`, `narrow`"):
            session.run(INPUTS, "wid")


class TestClassify:
    def test_probabilities_are_keyed_by_label(self, session: Session) -> None:
        predictions = session.classify(INPUTS, "narrow")
        logits = session.run(INPUTS, "narrow")["logits"].astype(np.float64)
        expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        assert len(predictions) == 3
        for prediction, row in zip(predictions, expected, strict=True):
            assert list(prediction.probabilities) == ["red", "green", "blue"]
            np.testing.assert_allclose(list(prediction.probabilities.values()), row, rtol=1e-6)
            assert prediction.label == ["red", "green", "blue"][int(row.argmax())]
            assert prediction.probability == max(prediction.probabilities.values())

    def test_classify_refuses_an_adapter_without_a_head(self, session: Session) -> None:
        assert session.labels("plain") is None
        with pytest.raises(RequestError, match="found no head"):
            session.classify(INPUTS, "plain")


class TestLoad:
    def test_load_accepts_another_width_of_the_same_topology(
        self, session: Session, bundle: Bundle, tmp_path: Path
    ) -> None:
        base = open_onnx(save_tiny(tmp_path))
        adapter = random_adapter("new", houlsby(BottleneckOptions("gelu")), base, bottleneck=21, labels="abcd")
        session.load("new", _save_for(bundle, adapter, tmp_path), labels=("a", "b", "c", "d"))
        assert session.adapters == ("wide", "narrow", "pfeiffer", "plain", "new")
        assert session.labels("new") == ("a", "b", "c", "d")
        for output, expected in CutRunner(base).run(INPUTS, adapter).items():
            np.testing.assert_allclose(session.run(INPUTS, "new")[output], expected, rtol=0, atol=2e-5)

    def test_the_file_may_change_or_vanish_afterwards(self, session: Session, bundle: Bundle, tmp_path: Path) -> None:
        path = tmp_path / "a"
        shutil.copy(bundle.folder / "adapters/wide.onnx_adapter", path)
        session.load("again", path)
        expected = session.run(INPUTS, "wide")["hidden"]
        with path.open("r+b") as file:
            file.write(b"\xff" * path.stat().st_size)
        np.testing.assert_array_equal(session.run(INPUTS, "again")["hidden"], expected)
        os.truncate(path, 0)
        np.testing.assert_array_equal(session.run(INPUTS, "again")["hidden"], expected)
        path.unlink()
        np.testing.assert_array_equal(session.run(INPUTS, "again")["hidden"], expected)

    def test_load_refuses_a_taken_name(self, session: Session, bundle: Bundle) -> None:
        before = session.run(INPUTS, "wide")["hidden"]
        with pytest.raises(RequestError, match="already loaded"):
            session.load("wide", bundle.folder / "adapters/narrow.onnx_adapter")
        np.testing.assert_array_equal(session.run(INPUTS, "wide")["hidden"], before)

    @pytest.mark.parametrize("name", ["", "../a", "a b", "a/b"])
    def test_a_name_that_no_adapter_may_have(self, session: Session, bundle: Bundle, name: str) -> None:
        with pytest.raises(AdapterError):
            session.load(name, bundle.folder / "adapters/narrow.onnx_adapter")

    @pytest.mark.parametrize("labels", [("only",), ("a", "b", "c")])
    def test_load_refuses_a_wrong_number_of_labels(
        self, session: Session, bundle: Bundle, labels: tuple[str, ...]
    ) -> None:
        with pytest.raises(AdapterError, match=rf"{len(labels)} labels?; expected 2"):
            session.load("more", bundle.folder / "adapters/wide.onnx_adapter", labels=labels)

    @pytest.mark.parametrize("labels", [("same", "same"), "ab"])
    def test_load_refuses_duplicate_or_malformed_labels(self, session: Session, bundle: Bundle, labels: object) -> None:
        with pytest.raises(AdapterError, match="not one name for each class"):
            session.load("more", bundle.folder / "adapters/wide.onnx_adapter", labels=labels)  # type: ignore[arg-type]

    def test_load_refuses_an_unknown_task(self, session: Session, bundle: Bundle) -> None:
        with pytest.raises(AdapterError, match=r"unknown problem type; found `classify`; expected .*regression"):
            session.load("more", bundle.folder / "adapters/wide.onnx_adapter", task="classify")  # type: ignore[arg-type]

    def test_load_refuses_labels_for_an_adapter_without_a_head(self, session: Session, bundle: Bundle) -> None:
        with pytest.raises(AdapterError, match="has no head for `single_label`; found no head"):
            session.load("more", bundle.folder / "adapters/plain.onnx_adapter", labels=("a",))

    def test_loaded_adapter_without_labels_runs_but_does_not_classify(self, session: Session, bundle: Bundle) -> None:
        session.load("more", bundle.folder / "adapters/wide.onnx_adapter")
        np.testing.assert_array_equal(session.run(INPUTS, "more")["logits"], session.run(INPUTS, "wide")["logits"])
        with pytest.raises(RequestError, match="pass `labels`"):
            session.classify(INPUTS, "more")

    def test_unloaded_adapters_can_no_longer_run(self, session: Session) -> None:
        session.unload("wide")
        assert "wide" not in session.adapters
        with pytest.raises(RequestError, match="not loaded"):
            session.run(INPUTS, "wide")
        with pytest.raises(RequestError, match="not loaded"):
            session.unload("wide")

    def test_load_refuses_a_missing_file(self, session: Session, tmp_path: Path) -> None:
        with pytest.raises(FileError):
            session.load("x", tmp_path / "none.onnx_adapter")

    def test_session_loads_five_hundred_adapters(self, session: Session, bundle: Bundle, tmp_path: Path) -> None:
        tensors = _tensors(bundle, "narrow")
        bias = "adapter.head.mean_pool_linear.classifier.bias"
        expected = session.run(INPUTS, "narrow")["logits"] - tensors[bias]
        for index in range(500):
            tensors[bias] = np.full(3, index, np.float32)
            session.load(f"n{index}", _write(tmp_path / "a", tensors, bundle.manifest.model_version))
        for index in (0, 123, 499):
            found = session.run(INPUTS, f"n{index}")["logits"]
            np.testing.assert_allclose(found, expected + index, rtol=0, atol=1e-4)


def _save_for(bundle: Bundle, adapter: object, folder: Path) -> Path:
    """Write an adapter file for the bundle's graph, planned with the bundle's adapters."""
    base = open_onnx(save_tiny(folder))
    plan = plan_slots([*mixed_adapters(base), adapter], base.sites)  # type: ignore[list-item]
    assert plan.slots == bundle.manifest.slots
    path = folder / "new.onnx_adapter"
    write_adapter_file(path, slot_tensors(plan, adapter), model_version(base, plan))  # type: ignore[arg-type]
    return path


WEIGHT = "adapter.layers.0.attention.down.weight"


def _without_one(tensors: Tensors) -> None:
    del tensors[WEIGHT]


def _with_one_more(tensors: Tensors) -> None:
    tensors["adapter.layers.9.ffn.down.weight"] = np.ones((2, 2), np.float32)


def _named_like_an_input(tensors: Tensors) -> None:
    tensors["input_ids"] = np.ones((3, 5), np.float32)


def _of_another_width(tensors: Tensors) -> None:
    tensors[WEIGHT] = np.ones((16, 7), np.float32)


def _of_another_base(tensors: Tensors) -> None:
    tensors[WEIGHT] = np.ones((17, 64), np.float32)


def _of_another_rank(tensors: Tensors) -> None:
    tensors[WEIGHT] = np.ones((16,), np.float32)


def _not_a_number(tensors: Tensors) -> None:
    tensors[WEIGHT] = np.full_like(tensors[WEIGHT], np.nan)


def _infinite(tensors: Tensors) -> None:
    tensors[WEIGHT] = tensors[WEIGHT] / np.float32(1e-38) * np.float32(1e38)


def _of_width_zero(tensors: Tensors) -> None:
    tensors[WEIGHT] = np.ones((16, 0), np.float32)


def _of_another_type(tensors: Tensors) -> None:
    tensors[WEIGHT] = tensors[WEIGHT].astype(np.float64)


class TestFilesThatDoNotFit:
    @pytest.mark.filterwarnings("ignore:overflow")
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (_without_one, f"`{WEIGHT}` is missing"),
            (_with_one_more, r"`adapter.layers.9.ffn.down.weight` is left over"),
            (_named_like_an_input, "`input_ids` is the name of a data input"),
            (_of_another_width, r"has `b` = "),
            (_of_another_base, r"has shape \[17, 64\], not \[16, 'b'\]"),
            (_of_another_rank, r"has shape \[16\]"),
            (_not_a_number, "NaN or Inf"),
            (_infinite, "NaN or Inf"),
            (_of_width_zero, "whose size does not match its shape"),
            (_of_another_type, "unsupported type"),
        ],
    )
    def test_load_refuses_tensors_that_do_not_fit(
        self, session: Session, bundle: Bundle, tmp_path: Path, change: object, message: str
    ) -> None:
        tensors = _tensors(bundle, "wide")
        change(tensors)  # type: ignore[operator]
        with pytest.raises(TensorError, match=message):
            session.load("x", _write(tmp_path / "x", tensors))
        assert "x" not in session.adapters

    def test_all_faults_are_listed(self, session: Session, bundle: Bundle, tmp_path: Path) -> None:
        tensors = _tensors(bundle, "wide")
        _without_one(tensors)
        _with_one_more(tensors)
        with pytest.raises(TensorError, match=r"is missing; .*is left over"):
            session.load("x", _write(tmp_path / "x", tensors))

    def test_load_refuses_an_adapter_of_another_graph(self, session: Session, tmp_path: Path) -> None:
        base = open_onnx(save_tiny(tmp_path))
        adapter = random_adapter("a", houlsby(), base)
        plan = plan_slots([adapter], base.sites)
        write_adapter_file(tmp_path / "a", slot_tensors(plan, adapter), 5)
        with pytest.raises(TensorError, match="is missing"):
            session.load("a", tmp_path / "a")

    def test_load_refuses_equal_shapes_of_another_base(self, session: Session, tmp_path: Path) -> None:
        other = Bundle.open(build_tiny(tmp_path, model=tiny_model(seed=1)))
        assert [asdict(slot) for slot in other.manifest.slots] == [asdict(slot) for slot in session._manifest.slots]
        path = other.folder / other.manifest.adapters[0].onnx_adapter
        with pytest.raises(AdapterError, match=r"was made for another bundle.*found `model_version` \d+"):
            session.load("x", path)
        assert "x" not in session.adapters
        other.session().load("x", path)

    @pytest.mark.parametrize("version", [None, 0, 1, -5])
    def test_load_refuses_a_file_of_another_model_version(
        self, session: Session, bundle: Bundle, tmp_path: Path, version: int | None
    ) -> None:
        with pytest.raises(AdapterError, match="was made for another bundle"):
            session.load("x", _write(tmp_path / "x", _tensors(bundle, "wide"), version))

    def test_load_refuses_files_of_another_format(self, session: Session, bundle: Bundle) -> None:
        with pytest.raises(FormatError, match="not an ONNX Runtime adapter file"):
            session.load("x", bundle.folder / "model.onnx")


class TestThreads:
    def test_threads_get_right_results_during_loads_and_unloads(self, session: Session, bundle: Bundle) -> None:
        inputs = [token_inputs(4, 2, seed=seed) for seed in range(8)]
        expected = {(name, seed): session.run(inputs[seed], name) for name in NAMES for seed in range(8)}
        data = (bundle.folder / "adapters/wide.onnx_adapter").read_bytes()

        def work(seed: int) -> int:
            rng = np.random.default_rng(seed)
            done = 0
            for step in range(60):
                name = NAMES[rng.integers(len(NAMES))]
                found = session.run(inputs[seed], name)
                for output, value in expected[name, seed].items():
                    np.testing.assert_array_equal(found[output], value)
                own = f"own{seed}.{step}"
                session.load_bytes(own, data)
                np.testing.assert_array_equal(
                    session.run(inputs[seed], own)["hidden"], expected["wide", seed]["hidden"]
                )
                session.unload(own)
                done += 1
            return done

        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(work, range(8))) == [60] * 8
        assert session.adapters == NAMES[1:]

    def test_adapters_may_be_unloaded_during_a_call(self, session: Session) -> None:
        expected = session.run(token_inputs(40, 40), "wide")["hidden"]
        with ThreadPoolExecutor(4) as pool:
            runs = [pool.submit(session.run, token_inputs(40, 40), "wide") for _ in range(40)]
            session.unload("wide")
            gc.collect()
        found = [run.result()["hidden"] for run in runs if run.exception() is None]
        assert found
        for value in found:
            np.testing.assert_array_equal(value, expected)
        assert all(run.exception() is None or isinstance(run.exception(), RequestError) for run in runs)
