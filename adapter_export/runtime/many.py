"""Many requests in few calls: checked, put together by length and adapter, run, and given back in their order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from adapter_export.errors import within
from adapter_export.runtime.bank import Bank
from adapter_export.runtime.calls import Calls, Outputs
from adapter_export.runtime.joining import batch_axis, joined, rows_can_be_told_apart, sizes_of, taken_apart
from adapter_export.runtime.packing import Item, Rules, batches
from adapter_export.runtime.padding import PaddingRule
from adapter_export.runtime.progress import Progress
from adapter_export.runtime.request import check_inputs

TOKEN_BUDGET = 512
"""How many tokens `run_many` puts into a call if nobody says it: on a CPU, larger calls save nothing."""


@dataclass(frozen=True)
class Request:
    """One request of many.

    Attributes:
        inputs: an array for each input of the base, of one row or several.
        adapter: the adapter to run with; none is the base.
    """

    inputs: Mapping[str, np.ndarray]
    adapter: str | None = None


class ManyCalls:
    """Runs any number of requests.

    Args:
        calls: runs what stands in one call.
        bank: says which adapters may stand in one.
        padding: says along which axes requests may be padded.
        resident: how many different adapters one call may have.
    """

    def __init__(self, calls: Calls, bank: Bank, padding: PaddingRule, resident: int) -> None:
        self._calls = calls
        self._manifest = calls.manifest
        self._bank = bank
        self._padding = padding
        self._resident = resident

    def items(self, requests: Iterable[Request]) -> list[Item]:
        """The requests, each checked, its adapter looked up.

        Raises:
            RequestError: one does not fit, and the message says which; or they cannot be put together at all.
        """
        batch = batch_axis(self._manifest)
        return [self._item(index, request, batch) for index, request in enumerate(requests)]

    def run(
        self, items: Sequence[Item], token_budget: int, progress: Progress, allow_mixed_rows: bool
    ) -> list[Outputs]:
        """The outputs of each item, in the order of their numbers.

        Raises:
            UsageError: the budget is below 1.
            RequestError: ONNX Runtime cannot compute them.
        """
        results: list[Outputs] = [{}] * len(items)
        done = 0
        for batch in batches(items, self._rules(items, token_budget, allow_mixed_rows)):
            entries = [item.entry for item in batch for _ in range(item.rows)]
            outputs = self._calls.together(joined(batch, self._manifest), entries)
            for item, own in taken_apart(outputs, batch, self._manifest):
                results[item.index] = own
            done += len(batch)
            progress(done, len(items))
        return results

    def _item(self, index: int, request: Request, batch: str) -> Item:
        with within(f"request {index}"):
            arrays = check_inputs(request.inputs, self._manifest.inputs)
            entry = self._calls.entry(request.adapter)
            rows = len(next(iter(arrays.values())))
            sizes = sizes_of(arrays, self._manifest, batch)
            return Item(index, arrays, entry, rows, sizes, self._padding.axes(entry))

    def _rules(self, items: Sequence[Item], token_budget: int, allow_mixed_rows: bool) -> Rules:
        together = self._manifest.batch_invariant or allow_mixed_rows
        apart = rows_can_be_told_apart(self._manifest, batch_axis(self._manifest))
        adapters = self._resident if self._bank.takes([item.entry for item in items]) else 1
        return Rules(token_budget, adapters, together and apart)
