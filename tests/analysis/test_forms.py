"""Forms of a model and of bundles side by side: the measurements, and the rule that recommends one."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from click.testing import CliRunner
from heard import Heard
from small_bundle import build_small

import adapter_export as ae
from adapter_export.bases.base_forms import base_forms
from adapter_export.bases.prepared_base import slow_note
from adapter_export.bundle.latency import Latency
from adapter_export.cli.main import main
from adapter_export.errors import RequestError, UsageError
from adapter_export.format.precision import Precision
from adapter_export.onnx_backend.quantise.rewritten import Verdict
from adapter_export.plugins.lab.speed.forms import SHAPES, CallTime, FormBenchmark, FormTimes, recommend

PRECISIONS = ("fp32", "int8")


def form(name: str, ratio: float, size: int = 100, verdict: Verdict = "close") -> FormTimes:
    times = (CallTime(1, 16, 10 * ratio, Latency(ratio, ratio, ratio)),)
    return FormTimes(name, None, size, times, ratio, 0.99, verdict)


@pytest.mark.parametrize(
    ("forms", "best"),
    [
        ([form("fp32", 1), form("int8", 0.5)], "int8"),
        ([form("fp32", 1), form("int8", 1.3, 25)], "fp32"),
        ([form("fp32", 1), form("int8", 0.5, verdict="apart"), form("fp16", 0.9)], "fp16"),
        ([form("fp32", 1), form("int8", 0.5, verdict="far")], "fp32"),
        ([form("fp32", 1), form("fp16", 1.04, 50)], "fp16"),  # as fast within 5 %, and smaller
        ([form("fp32", 1), form("fp16", 1.06, 50)], "fp32"),
        ([form("fp32", 1), form("a", 0.5, 30), form("b", 0.52, 20), form("c", 0.6, 10)], "b"),
    ],
)
def test_the_fastest_close_form_is_recommended(forms: list[FormTimes], best: str) -> None:
    found, reason = recommend(forms)
    assert found.name == best
    left = [one.name for one in forms if one.verdict != "close"]
    assert all(f"`{name}`" in reason.partition("not close: ")[2] for name in left)
    assert ("not close" in reason) == bool(left)


def test_each_form_is_listed_once() -> None:
    names = [one.name for one in base_forms()]
    assert len(names) == len(set(names)) == 18
    assert [one.name for one in base_forms(("int8",))] == ["int8", "int8 + optimize"]
    assert [one.name for one in base_forms(("fp32",), fused=False)] == ["fp32"]


def test_a_slow_precision_is_a_warning_of_build() -> None:
    precision = Precision.of("int8-weights")
    assert slow_note(Latency(1.2, 1.05, 1.4), precision) is None
    note = slow_note(Latency(1.28, 1.2, 1.4), precision)
    assert note is not None
    assert "int8-weights is slower than fp32" in note.sentence()
    assert "1.28 (1.20 to 1.40)" in note.sentence()
    assert "`adapter-export bench MODEL`" in note.sentence("shell")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("forms")
    small = build_small(folder, ["slots", "bank"])
    heard = Heard()
    ae.build(small.model, [small.folder / "adapters" / "tone"], folder / "int8", base_precision="int8", reporter=heard)
    assert "timing the base beside float32" in heard.steps
    assert not any("of the time" in step for step in heard.steps)  # a call takes microseconds
    return folder


def test_a_model_is_measured_in_each_form(built: Path) -> None:
    heard = Heard()
    found = ae.bench(built / "base.onnx", precisions=PRECISIONS, seconds=0.001, reporter=heard)
    assert isinstance(found, FormBenchmark)
    names = ["fp32", "fp32 + optimize", "int8", "int8 + optimize"]
    assert [one.name for one in found.forms] == names
    assert [step for step in heard.steps if step.startswith("timing")] == [f"timing {name}" for name in names[1:]]
    plain, fused, small, _ = found.forms
    assert (plain.ratio, plain.cosine, plain.verdict) == (1, 1, "close")
    # fusions change the order of sums only; 8 bits round by up to 1/255 of the largest value of a row
    assert fused.cosine > 1 - 1e-6 > small.cosine > 0.95
    assert small.bytes < plain.bytes
    for one in found.forms:
        assert [(time.rows, time.tokens) for time in one.times] == list(SHAPES)
        assert all(
            time.milliseconds > 0 and time.ratio.low <= time.ratio.ratio <= time.ratio.high for time in one.times
        )
        assert one.ratio == pytest.approx(math.prod(time.ratio.ratio for time in one.times) ** (1 / 3))
    assert found.recommended in found.forms
    assert f"ship {found.recommended}: {found.reason}" in str(found)
    options = found.recommended.options
    assert all(f"`{name}={json.dumps(value)}`" in str(found) or value is True for name, value in options.items())
    assert found.forms[3].options == {"base_precision": "int8", "optimize": True}


def test_bundles_are_measured_in_each_variant(built: Path) -> None:
    options = ["--adapter", "tone", "--rows", "3", "--seconds", "0.001", "--providers", "cpu", "--json"]
    done = CliRunner().invoke(main, ["bench", str(built / "int8"), str(built / "bundle"), *options])
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    forms = [(one["name"], one["variant"]) for one in document["forms"]]
    assert forms == [("bundle", "slots"), ("bundle", "bank"), ("int8", "slots"), ("int8", "inputs"), ("int8", "bank")]
    assert {(time["rows"], time["tokens"]) for one in document["forms"] for time in one["times"]} == {(3, 32)}
    same = {one["variant"]: one["cosine"] for one in document["forms"] if one["name"] == "bundle"}
    assert same["bank"] > 1 - 1e-6
    assert document["recommended"] in document["forms"]


def test_bench_refuses_forms_that_cannot_be_compared(built: Path) -> None:
    bundle, model = built / "bundle", built / "base.onnx"
    for call, words in (
        ((), "models 0, bundles 0"),
        ((bundle, model), "models 1, bundles 1"),
        ((model, model), "models 2"),
        ((bundle, bundle), "given twice"),
    ):
        with pytest.raises(UsageError, match=words):
            ae.bench(*call)
    with pytest.raises(UsageError, match="no adapters"):
        ae.bench(model, adapter="tone")
    with pytest.raises(UsageError, match="`int9`"):
        ae.bench(model, precisions=("int9",))
    with pytest.raises(UsageError, match="found none"):
        ae.bench(model, precisions=())
    with pytest.raises(RequestError, match="`topic`"):
        ae.bench(bundle, built / "int8", adapter="topic")
