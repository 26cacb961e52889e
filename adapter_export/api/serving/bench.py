"""Measure how a bundle is served best on this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from adapter_export.api.adapters.kinds import at_least_1
from adapter_export.api.bundles.bundles import open_bundle
from adapter_export.api.bundles.check import OnStep
from adapter_export.api.models.base import PathLike
from adapter_export.errors import UsageError, argument
from adapter_export.option import Option

if TYPE_CHECKING:
    from adapter_export.analysis.concurrency import Benchmark
    from adapter_export.runtime import Bundle


def bench(
    bundle: Bundle | PathLike,
    *,
    adapter: Annotated[str | None, Option("The adapter of the rows; the base if not given.", "NAME")] = None,
    rows: Annotated[int, Option("Rows in a call.", "N", least=1)] = 1,
    tokens: Annotated[int, Option("Tokens in a row.", "N", least=1)] = 32,
    seconds: Annotated[float, "How long each way runs in each of five rounds."] = 1.0,
    on_step: OnStep | None = None,
) -> Benchmark:
    """Measure how many calls of a bundle to run at a time on this machine, and on how many threads each.

    Tried are one call on one thread, and the ways that take all processors of this process, by powers of two.

    Args:
        bundle: the bundle, or its folder.
        on_step: is told of each turn of a way.

    Returns:
        Rows per second and times of each way, and the two to give to `serve`: for the most rows, and for the shortest
        time of a call.

    Raises:
        RequestError: the bundle lacks the adapter, or takes no such rows.
        InputError: it is damaged.
        UsageError: an argument has no meaning.
    """
    from adapter_export.analysis.concurrency import Load, measure

    load = Load(adapter, at_least_1("rows", rows), at_least_1("tokens", tokens))
    if not 0 < seconds < float("inf"):
        raise UsageError("is no time", where=argument("seconds"), found=seconds, expected="more than 0")
    return measure(open_bundle(bundle), load, seconds=seconds, on_step=on_step or (lambda *_: None))
