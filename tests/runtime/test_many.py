"""Many requests at once: in order, without padding, and each equal to its single run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise, product
from pathlib import Path

import numpy as np
import pytest
from building import build_bundle
from hypothesis import given
from hypothesis import strategies as st
from tiny_onnx import random_adapter, save_tiny, tiny_model, token_inputs

from adapter_export.errors import RequestError, UsageError
from adapter_export.graph.adapter import Adapter
from adapter_export.graph.kinds import BottleneckOptions, pfeiffer
from adapter_export.numerics.sample_inputs import input_cases
from adapter_export.onnx_backend.base.onnx_base import open_onnx
from adapter_export.onnx_backend.onnx_runner import CutRunner
from adapter_export.reporting import Reporter
from adapter_export.runtime import Bundle, Request, Session
from adapter_export.runtime.batches import CALL_TOKENS, Item, ProgressBar, batches
from adapter_export.runtime.loaded_adapters import Entry, Loaded

NAMES = (None, "wide", "narrow", "pfeiffer", "plain")


def _requests(count: int, names: Sequence[str | None] = NAMES, seed: int = 0) -> list[Request]:
    rng = np.random.default_rng(seed)
    return [
        Request(token_inputs(*rng.integers(1, 20, rng.integers(1, 4)), seed=seed + index), names[index % len(names)])
        for index in range(count)
    ]


def _hold(session: Session, requests: Sequence[Request], found: Sequence[dict[str, np.ndarray]]) -> None:
    assert len(found) == len(requests)
    for request, outputs in zip(requests, found, strict=True):
        alone = session.run(request.inputs, request.adapter)
        assert list(outputs) == list(alone)
        for name, expected in alone.items():
            assert outputs[name].shape == expected.shape
            np.testing.assert_allclose(outputs[name], expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("token_budget", [1, 40, 100_000])
def test_many_requests_equal_their_single_runs(session: Session, token_budget: int) -> None:
    requests = _requests(60)
    _hold(session, requests, session.run_many(requests, token_budget=token_budget))


def test_run_many_includes_loaded_adapters(session: Session, bundle: Bundle) -> None:
    for record in bundle.manifest.adapters:
        session.load(f"{record.name}.again", bundle.folder / record.onnx_adapter, task=record.task)
    requests = _requests(60, ["plain.again", "wide.again", None, "narrow", "narrow.again"])
    _hold(session, requests, session.run_many(requests))
    assert session.statistics.bank.resident == 4  # `narrow` among them, where it is in a call with others


def test_more_adapters_than_the_bank_has_rows(bundle: Bundle) -> None:
    session = bundle.session(threads=1, resident=2)
    for record in bundle.manifest.adapters:
        session.load(f"{record.name}.again", bundle.folder / record.onnx_adapter, task=record.task)
    requests = _requests(40, ["plain.again", "wide.again", "narrow.again", "pfeiffer.again"])
    _hold(session, requests, session.run_many(requests))


def test_run_many_works_without_a_bank(bundle: Bundle) -> None:
    manifest = replace(bundle.manifest, graphs={"slots": bundle.manifest.graphs["slots"]}, bank=None)
    session = replace(bundle, manifest=manifest).session(threads=1)
    requests = _requests(30)
    _hold(session, requests, session.run_many(requests))


class Steps(Reporter):
    """Records reports."""

    def __init__(self) -> None:
        self.steps: list[tuple[int, int | None]] = []

    def step(self, label: str, done: int = 0, total: int | None = None) -> None:
        self.steps.append((done, total))


def _calls(session: Session, requests: Sequence[Request], **options: int) -> list[int]:
    """Number of finished requests after each call."""
    seen = Steps()
    session.run_many(requests, reporter=seen, **options)
    assert {total for _, total in seen.steps} == {len(requests)}
    return [done for done, _ in seen.steps]


def test_calls_are_filled_up_to_the_budget(session: Session) -> None:
    requests = [Request(token_inputs(length), "wide") for length in (5, 1, 4, 2, 5, 3)]
    assert _calls(session, requests, token_budget=10) == [2, 4, 6]  # 1 2, then 3 4, then 5 5
    assert _calls(session, requests, token_budget=30) == [6]
    assert _calls(session, requests, token_budget=1) == [1, 2, 3, 4, 5, 6]


def test_rows_of_a_request_beyond_the_budget_are_in_several_calls(session: Session) -> None:
    requests = [Request(token_inputs(5, 5, 5, 5), "wide")]
    assert _calls(session, requests, token_budget=10) == [0, 1]
    assert _calls(session, requests, token_budget=20) == [1]
    _hold(session, requests, session.run_many(requests, token_budget=10))


def test_no_call_is_filled_up_for_more_than_a_call_costs(session: Session) -> None:
    lengths = (3, 3, 4, 4 + CALL_TOKENS // 2, 4 + CALL_TOKENS)
    requests = [Request(token_inputs(1, tokens=length), "wide") for length in lengths]
    assert _calls(session, requests) == [3, 5]


def test_no_other_cuts_cost_less(bundle: Bundle) -> None:
    entries = {name: Entry(name, None, None, _unread) for name in "abc"}
    axes = st.tuples(st.integers(1, 30), st.integers(1, 8))
    drawn_items = st.lists(
        st.builds(
            lambda sizes, rows, name: Item(
                0, Request({}), {}, entries.get(name), rows, dict(zip("st", sizes, strict=True)), frozenset("st")
            ),
            axes,
            st.integers(1, 3),
            st.sampled_from("abc-"),
        ),
        min_size=1,
        max_size=7,
    )

    @given(drawn_items, st.integers(1, 100), st.integers(2, 3), st.integers(0, 30))
    def hold(drawn: list[Item], token_budget: int, adapters: int, call_tokens: int) -> None:
        def tokens(call: Sequence[Item]) -> int:
            return sum(item.rows for item in call) * sum(max(item.sizes[axis] for item in call) for axis in "st")

        def fits(call: Sequence[Item]) -> bool:
            several = len({item.entry for item in call} - {None}) > adapters
            return len(call) == 1 or (tokens(call) <= token_budget and not several)

        def cost(calls: Sequence[Sequence[Item]]) -> int:
            return sum(tokens(call) + call_tokens for call in calls)

        items = [replace(item, index=index) for index, item in enumerate(drawn)]
        calls = list(batches(items, bundle.manifest, token_budget, adapters, False, call_tokens))
        order = [item for call in calls for item in call]
        assert sorted(item.index for item in order) == list(range(len(items)))
        assert all(fits(call) for call in calls)
        ways = []  # one by one, and each call as large as may be, are two of them
        for chosen in product((False, True), repeat=len(items) - 1):
            cuts = [0, *(place for place, cut in enumerate(chosen, 1) if cut), len(items)]
            ways.append([order[start:end] for start, end in pairwise(cuts)])
        assert cost(calls) == min(cost(way) for way in ways if all(fits(call) for call in way))

    hold()


def _unread() -> Loaded:
    raise AssertionError


def test_adapters_share_a_call(session: Session) -> None:
    requests = [Request(token_inputs(5, seed=seed), NAMES[seed % 5]) for seed in range(10)]
    assert _calls(session, requests) == [10]


def test_rows_that_influence_each_other_run_alone(bundle: Bundle) -> None:
    session = replace(bundle, manifest=replace(bundle.manifest, batch_invariant=False)).session(threads=1)
    requests = [Request(token_inputs(5, seed=seed), NAMES[seed % 5]) for seed in range(6)]
    assert _calls(session, requests) == [1, 2, 3, 4, 5, 6]
    assert _calls(session, requests, allow_mixed_rows=True) == [6]


def test_run_many_shows_a_progress_bar(session: Session, capsys: pytest.CaptureFixture[str]) -> None:
    session.run_many(_requests(4), reporter=ProgressBar())
    assert capsys.readouterr().err.endswith("] 4/4\n")


def test_invalid_requests_are_refused_before_any_call(session: Session) -> None:
    wrong = Request({"input_ids": np.zeros((1, 2), np.int64)}, "wide")
    calls = Steps()
    with pytest.raises(RequestError, match="request 2: the inputs are not those of the graph"):
        session.run_many([*_requests(2), wrong], reporter=calls)
    with pytest.raises(RequestError, match="request 0, adapter `nobody`"):
        session.run_many([Request(token_inputs(2), "nobody")])
    with pytest.raises(UsageError, match="`token_budget` must be greater than 0"):
        session.run_many(_requests(2), token_budget=0)
    assert calls.steps == []
    assert session.run_many([]) == []


@pytest.fixture(scope="module")
def gated(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """An adapter whose gate counts padding, and one without."""
    folder = tmp_path_factory.mktemp("gated")
    base = open_onnx(save_tiny(folder))
    adapters: list[Adapter] = [
        random_adapter("gated", pfeiffer(BottleneckOptions(gate=True)), base, labels="ab"),
        random_adapter("plain", pfeiffer(BottleneckOptions()), base, labels="ab"),
    ]
    cases = input_cases(base.inputs, seed=0, shapes=[{"batch": 2, "tokens": 5}])
    build_bundle(base, adapters, folder / "bundle", references=CutRunner(base), cases=cases)
    return Bundle.open(folder / "bundle")


def test_adapters_that_count_padding_are_not_padded(gated: Bundle) -> None:
    session = gated.session(threads=1)
    requests = _requests(30, ["plain", None])
    _hold(session, requests, session.run_many(requests))
    requests = _requests(30, ["gated", "plain", None])
    for request, outputs in zip(requests, session.run_many(requests), strict=True):
        for row, mask in enumerate(request.inputs["attention_mask"]):  # each without its padding
            tokens = int(mask.sum())
            own = {name: array[row : row + 1, :tokens] for name, array in request.inputs.items()}
            for name, expected in session.run(own, request.adapter).items():
                result = outputs[name][row : row + 1]
                result = result[:, :tokens] if expected.ndim == 3 else result
                np.testing.assert_allclose(result, expected, rtol=0, atol=2e-5)


def test_left_padding_is_moved_behind_the_tokens(session: Session) -> None:
    whole = token_inputs(5)
    left = {name: np.pad(array, ((0, 0), (3, 0))) for name, array in whole.items()}
    for names in (["plain"], NAMES):
        for name, found in zip(names, session.run_many([Request(left, name) for name in names]), strict=True):
            for output, expected in session.run(whole, name).items():
                own = found[output][:, 3:] if expected.ndim == 3 else found[output]
                np.testing.assert_allclose(own, expected, rtol=0, atol=2e-5)
    with pytest.raises(
        RequestError, match="row 0, adapter `plain`: a row has padding that changes its result; expected padding after"
    ):
        session.run(left, "plain")


def test_head_only_requests_return_only_the_head(session: Session) -> None:
    requests = [replace(request, head_only=True) for request in _requests(20)]
    for request, found in zip(requests, session.run_many(requests), strict=True):
        own = session.run(request.inputs, request.adapter)
        output = None if request.adapter is None else session.output(request.adapter)
        assert list(found) == (list(own) if output is None else [output])
        for name, array in found.items():
            np.testing.assert_allclose(array, own[name], rtol=0, atol=2e-5)


def test_counted_padding_is_refused_by_run(gated: Bundle) -> None:
    session = gated.session(threads=1)
    short, long = token_inputs(3), token_inputs(3, tokens=9)
    padded = {name: array * long["attention_mask"] for name, array in long.items()}
    padded["input_ids"][:, :3] = short["input_ids"]
    one = session.run(short, "gated")["logits"]
    other = session.run(padded, "gated", allow_padding=True)["logits"]
    assert np.abs(one - other).max() > 2e-4  # what the test is about
    with pytest.raises(RequestError, match="row 0, adapter `gated`: a row has padding that changes its result"):
        session.run(padded, "gated")
    (alone,) = session.run_many([Request(padded, "gated")])
    np.testing.assert_allclose(alone["logits"], one, atol=1e-5)


def test_adapters_that_do_not_act_where_padding_counts_are_padded(gated: Bundle) -> None:
    session = gated.session(threads=1)
    session.load("again", gated.folder / "adapters/plain.onnx_adapter")
    session.load("gated.again", gated.folder / "adapters/gated.onnx_adapter")
    for name, calls in (("plain", [3]), ("again", [3]), (None, [3]), ("gated", [1, 2, 3]), ("gated.again", [1, 2, 3])):
        assert _calls(session, [Request(token_inputs(length), name) for length in (3, 5, 7)]) == calls


def test_a_base_without_a_mask_gets_equal_lengths(tmp_path: Path) -> None:
    mask = """
    zeros = Sub(input_ids, input_ids)
    penalty = Cast <to = 1> (zeros)
    axis = Constant <value = int64[1] {1}> ()
    bias = Unsqueeze(penalty, axis)
    """
    base = open_onnx(save_tiny(tmp_path, tiny_model(inputs="int64[batch, tokens] input_ids", mask=mask)))
    cases = input_cases(base.inputs, seed=0, shapes=[{"batch": 2, "tokens": 5}])
    adapters = [random_adapter("a", pfeiffer(), base, labels="ab")]
    build_bundle(base, adapters, tmp_path / "bundle", references=CutRunner(base), cases=cases)
    session = Bundle.open(tmp_path / "bundle").session(threads=1)
    requests = [
        Request({"input_ids": token_inputs(length, seed=seed)["input_ids"]}, "a")
        for seed, length in enumerate((4, 2, 4, 2, 7))
    ]
    _hold(session, requests, session.run_many(requests))
    assert _calls(session, requests) == [2, 4, 5]


def test_requests_are_classified_with_labels_of_their_adapter(session: Session) -> None:
    requests = _requests(20, ["wide", "narrow", "pfeiffer"])
    for request, found in zip(requests, session.classify_many(requests), strict=True):
        alone = session.classify(request.inputs, request.adapter)
        assert [each.label for each in found] == [each.label for each in alone]
        assert [list(each.probabilities) for each in found] == [list(each.probabilities) for each in alone]
    with pytest.raises(RequestError, match="request 1: the base by itself cannot do"):
        session.classify_many(_requests(2, ["wide", None]))
    with pytest.raises(RequestError, match="request 0, adapter `plain`"):
        session.classify_many(_requests(2, ["plain"]))
