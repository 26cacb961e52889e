"""Measure how to serve a bundle on this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from adapter_export.api.adapters.kinds import at_least_1
from adapter_export.api.bundles.bundles import open_bundle
from adapter_export.api.models.base import Address
from adapter_export.commands.command import Command, Screen
from adapter_export.errors import UsageError, argument, worded
from adapter_export.option import Option
from adapter_export.reporting import SILENT, Reporter

if TYPE_CHECKING:
    from adapter_export.analysis.concurrency import Benchmark
    from adapter_export.runtime import Bundle


def bench(
    bundle: Bundle | Address,
    *,
    adapter: Annotated[str | None, Option("Adapter of the rows. Default: the base.", "NAME")] = None,
    rows: Annotated[int, Option("Rows per call.", "N", least=1)] = 1,
    tokens: Annotated[int, Option("Tokens per row.", "N", least=1)] = 32,
    seconds: Annotated[float, "Duration of each setting in each of five rounds."] = 1.0,
    reporter: Reporter = SILENT,
) -> Benchmark:
    """Measure the throughput and latency of a bundle at different numbers of concurrent calls and threads.

    The settings are one call on one thread, and those that use all processors of this process, by powers of two. They
    take turns in five rounds. Pass the recommended settings to `serve`: one for throughput, one for latency.

    Args:
        bundle: the bundle, or its folder.
        reporter: receives a step for each turn of a setting.

    Returns:
        Rows per second and latencies of each setting, and the recommended ones.

    Raises:
        RequestError: the bundle does not have the adapter, or does not take such rows.
        InputError: the bundle is damaged.
        UsageError: an argument is out of range.
    """
    from adapter_export.analysis.concurrency import Load, measure_ways

    load = Load(adapter, at_least_1("rows", rows), at_least_1("tokens", tokens))
    if not 0 < seconds < float("inf"):
        raise UsageError("must be greater than 0", where=argument("seconds"), found=seconds)
    return measure_ways(open_bundle(bundle), load, seconds, reporter)


def _show(found: Benchmark, screen: Screen) -> None:
    screen.show(found.table())
    for phrase in found.advice():
        screen.say(worded(phrase, "shell"))


COMMAND = Command(
    bench,
    _show,
    examples=(
        "adapter-export bench bundle --adapter trec",
        "adapter-export bench bundle --adapter trec --rows 8 --tokens 128 --json",
    ),
)
