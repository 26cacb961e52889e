"""The number of concurrent calls that serves a bundle best, measured with the real runtime."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from heard import Heard
from small_bundle import text_bundle

import adapter_export as ae
from adapter_export.cli.main import main
from adapter_export.errors import RequestError, UsageError
from adapter_export.plugins.lab.speed.concurrency import ROUNDS, ways


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return text_bundle(tmp_path_factory)


@pytest.mark.parametrize(
    ("processors", "expected"),
    [(1, [(1, 1)]), (2, [(1, 1), (1, 2), (2, 1)]), (6, [(1, 1), (1, 6), (2, 3), (4, 1)])],
)
def test_every_way_uses_all_processors(processors: int, expected: list[tuple[int, int]]) -> None:
    assert list(ways(processors)) == expected


def test_each_way_is_measured_and_the_best_are_named(bundle: Path) -> None:
    heard = Heard()
    found = ae.bench(bundle, adapter="tone", rows=3, seconds=0.01, reporter=heard)
    tried = [(way.calls, way.threads) for way in found.ways]
    assert tried == list(ways(found.processors))
    assert heard.counts == [(done + 1, ROUNDS * len(tried)) for done in range(ROUNDS * len(tried))]
    assert found.most_rows.rows_per_second == max(way.rows_per_second for way in found.ways) > 0
    assert found.fastest.median == min(way.median for way in found.ways) > 0
    assert all(way.median <= way.slow for way in found.ways)
    one = found.ways[0]  # one call after another: the rate is what the times say
    assert one.rows_per_second == pytest.approx(3 / one.median, rel=0.9)
    assert f"most rows per second: `concurrency={found.most_rows.calls}`, `threads={found.most_rows.threads}`" in str(
        found
    )


def test_bench_command_prints_json(bundle: Path) -> None:
    done = CliRunner().invoke(main, ["bench", str(bundle), "--seconds", "0.01", "--json"])
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert document["load"] == {"adapter": None, "rows": 1, "tokens": 32}
    assert document["most_rows"] in document["ways"]


def test_a_length_that_the_base_does_not_take_is_refused(bundle: Path) -> None:
    longest = ae.open_bundle(bundle).manifest.max_tokens
    with pytest.raises(
        UsageError, match=rf"`tokens`: the base takes no text .*; found 100000; expected 1 to {longest}"
    ):
        ae.bench(bundle, tokens=100_000)


def test_bench_refuses_unknown_adapters_and_invalid_options(bundle: Path) -> None:
    with pytest.raises(RequestError, match="nobody"):
        ae.bench(bundle, adapter="nobody")
    for wrong in ({"rows": 0}, {"tokens": 0}, {"seconds": 0.0}, {"seconds": float("nan")}):
        with pytest.raises(UsageError, match=f"`{next(iter(wrong))}`"):
            ae.bench(bundle, **wrong)  # type: ignore[arg-type]
