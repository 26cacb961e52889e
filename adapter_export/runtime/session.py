"""A session: any number of adapters, a choice per call or per row."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypedDict, Unpack, cast

import numpy as np
import onnxruntime as ort

from adapter_export.errors import RequestError, UsageError, within
from adapter_export.graph.tasks import ProblemType, Task
from adapter_export.runtime import batches
from adapter_export.runtime.answers import (
    Answer,
    Head,
    Prediction,
    TokenLabels,
    answer,
    check_type,
    own_classes,
    own_results,
    real_tokens,
    stacked,
)
from adapter_export.runtime.bank import Bank
from adapter_export.runtime.batches import CALL_TOKENS, TOKEN_BUDGET, Item, Progress, Request
from adapter_export.runtime.check_inputs import Inputs, Weighting, check_inputs, check_rows, weight_tensors
from adapter_export.runtime.graphs import Arrays, Graphs, Provider, on_device, run_bound, run_session, run_values
from adapter_export.runtime.loaded_adapters import Adapters, Claim, Entry, Statistics
from adapter_export.runtime.prefixes import Prefixes, digest_of
from adapter_export.runtime.strength import Strength, Strengths, strength_of_each

Chosen = Entry | list[Entry | None] | None
"""The adapter of all rows, or one for each; none is the base."""


class Choice(TypedDict, total=False):
    """The further arguments of all that answers, as `Session.run` describes them."""

    adapters: Sequence[str | None] | None
    weights: Weighting | None
    strength: Strength | None
    allow_mixed_rows: bool


class Session:
    """Runs a bundle's graphs; made by `Bundle.session`.

    The adapter is a choice of each call, or of each row, and never a state of the session, so any number of threads may
    run at once, with loads and unloads in between. Adapters lie in memory of their own, or on the device: their files
    may be overwritten or removed, those that are loaded on demand if the bundle has private copies. A fork of the
    process cannot use it (`UsageError`): the threads that compute are not there, and locks may be held for ever.
    """

    def __init__(self, graphs: Graphs, adapters: Adapters, resident: int, prefix_bytes: int = 0) -> None:
        self._graphs = graphs
        self._manifest = graphs.manifest
        self._adapters = adapters
        self._bank = Bank(graphs, adapters, resident)
        self._prefixes = Prefixes(graphs, prefix_bytes)
        self._strengths = Strengths(graphs, adapters)
        self._resident = resident
        self._maskable = batches.padded_axes(graphs.manifest)
        self._base_outputs = {record.name for record in graphs.manifest.base_outputs}
        self._process = os.getpid()

    @property
    def adapters(self) -> tuple[str, ...]:
        """The names of the adapters that are loaded."""
        return self._adapters.names

    @property
    def provider(self) -> Provider:
        """Where it computes."""
        return self._graphs.provider

    @property
    def statistics(self) -> Statistics:
        """Hits, loads and evictions so far."""
        return Statistics(self._adapters.counts, self._bank.counts, self._prefixes.counts)

    def labels(self, adapter: str) -> tuple[str, ...] | None:
        """Return the names of an adapter's classes in the order of its logits; none if it has none or they are unknown.

        Raises:
            RequestError: it is not loaded.
        """
        return self._adapters.entry(adapter).labels or None

    def task(self, adapter: str) -> Task | None:
        """Return what the answers of an adapter mean; none if it has no head or that is unknown.

        Raises:
            RequestError: it is not loaded.
        """
        return self._adapters.entry(adapter).task

    def output(self, adapter: str) -> str | None:
        """Return the output that holds the result of an adapter's head; none if it has no head.

        Raises:
            RequestError: it is not loaded.
        """
        return self._adapters.entry(adapter).output

    def head(self, adapter: str | None) -> Head:
        """Return an adapter with its task and the output of its head; of none, nothing.

        Raises:
            RequestError: it is not loaded.
        """
        entry = None if adapter is None else self._adapters.entry(adapter)
        return Head(None, None, None) if entry is None else Head(entry.name, entry.task, entry.output)

    def answering(self, adapter: str | None = None) -> Task:
        """Return the task by which an adapter answers; without one, that of the base's own head.

        Raises:
            RequestError: it is not loaded, has no head, or nobody knows what its results mean.
        """
        name = self._manifest.head if adapter is None else adapter
        return check_type(None if name is None else self._adapters.entry(name))[1]

    def run(
        self,
        inputs: Inputs,
        adapter: str | None = None,
        *,
        adapters: Sequence[str | None] | None = None,
        weights: Weighting | None = None,
        strength: Strength | None = None,
        allow_mixed_rows: bool = False,
    ) -> Arrays:
        """Compute the outputs.

        Args:
            inputs: an array for each input of the base.
            adapter: the adapter to run all rows with; without it, and without `adapters`, the base as it is.
            adapters: instead, an adapter for each row; none is the base. Needs the bundle's graph `bank`.
            weights: with an `adapter` that is a weighted fusion: a number for each of its members, by name, in the
                place of its own; for all rows, or a mapping for each row.
            strength: a number for all rows, or one for each row, which needs the graph `bank`: 0.5 adds half of what an
                adapter adds at its sites, 0 nothing, -1 takes it off. Heads stay.
            allow_mixed_rows: put rows of different adapters or weights into one call although the base lets the rows of
                a batch influence each other.

        Returns:
            The base's outputs by name, and the results of heads: of an adapter with a head at `output(adapter)`. In a
            call with `adapters`, they are as wide as the widest of its rows; a row holds −inf for classes that its
            adapter does not have, and NaN where its adapter has another head or none.

        Raises:
            RequestError: an adapter is not loaded, the inputs do not fit, ONNX Runtime cannot compute them, the bundle
                lacks the graph, or rows would influence each other.
            InputError: the file of an adapter that is read on demand is not what it was.
        """
        chosen = self._chosen(adapter, adapters, weights, strength, inputs)
        return self._compute(inputs, chosen, weights, allow_mixed_rows)

    def fan_out(
        self, inputs: Inputs, adapters: Sequence[str | None], *, allow_mixed_rows: bool = False
    ) -> dict[str | None, Arrays]:
        """Compute the outputs of every row through each of some adapters, in one call.

        In a bundle with the graph `fanout`, a row is computed once up to the first site at which any adapter of the
        bundle acts. Needs the bundle's graph `bank` in any case.

        Args:
            inputs: an array for each input of the base, of N rows.
            adapters: the M adapters; none is the base.
            allow_mixed_rows: as in `run`.

        Returns:
            For each adapter what `run` gives with it, for N rows, rounding aside.

        Raises:
            RequestError: as `run`; or no adapter is given.
        """
        self._check_process()
        if isinstance(adapters, str) or not adapters:
            raise RequestError(
                "there are no adapters to run the rows through",
                where="`adapters`",
                found=repr(adapters),
                expected="a list of names; none is the base",
            )
        arrays = check_inputs(inputs, self._manifest.inputs, self._manifest.lengths)
        batch, count = self._manifest.inputs[0].axes[0], len(next(iter(arrays.values())))
        chosen = {name: None if name is None else self._adapters.entry(name) for name in adapters}
        entries = [entry for entry in chosen.values() for _ in range(count)]
        tiled = {name: np.tile(array, (len(chosen), *[1] * (array.ndim - 1))) for name, array in arrays.items()}
        check_rows(tiled, entries, self._manifest, allow_mixed_rows)
        outputs = self._compute_rows(tiled, entries)
        axes = {record.name: record.axes.index(batch) for record in self._manifest.outputs if batch in record.axes}
        found: dict[str | None, Arrays] = {}
        for at, (name, entry) in enumerate(chosen.items()):
            rows = np.arange(at * count, (at + 1) * count)
            own = [output for output in self._outputs([entry]) if output in outputs]
            found[name] = {
                output: outputs[output].take(rows, axes[output]) if output in axes else outputs[output]
                for output in own
            }
            if entry is not None and entry.output is not None:
                found[name][entry.output] = np.ascontiguousarray(own_classes(found[name][entry.output]))
        return found

    def run_on_device(
        self, inputs: Inputs, adapter: str | None = None, *, weights: Weighting | None = None
    ) -> dict[str, ort.OrtValue]:
        """Compute the outputs and leave them where the session computes: on the GPU, for what is done there next.

        Raises:
            RequestError: as `run`.
        """
        entry = self._chosen(adapter, None, weights, None, inputs)
        assert not isinstance(entry, list)
        arrays = check_inputs(inputs, self._manifest.inputs, self._manifest.lengths)
        feeds = {name: on_device(array, self.provider) for name, array in arrays.items()}
        feeds.update(self._own_feeds(arrays, entry, weights, allow_mixed_rows=False))
        return run_bound(self._graphs.session("slots"), self._outputs([entry]), feeds, self.provider)

    def answer(
        self,
        inputs: Inputs,
        adapter: str | None = None,
        *,
        context: Sequence[np.ndarray | None] | None = None,
        **choice: Unpack[Choice],
    ) -> list[Answer]:
        """Compute an answer for each row, by the task of the row's adapter.

        Args:
            inputs: an array for each input of the base.
            adapter: the adapter of all rows; if none is chosen, the base's own head.
            context: for each row which of its tokens may be the answer to a question, bool [tokens]; of `span` only.
            choice: `adapters`, `weights`, `strength` and `allow_mixed_rows`, as in `run`.

        Raises:
            RequestError: as `run`; or an adapter has no head, or nobody knows what its results mean.
        """
        return self._answers(None, inputs, adapter, context, **choice)

    def classify(self, inputs: Inputs, adapter: str | None = None, **choice: Unpack[Choice]) -> list[Prediction]:
        """Compute the labels of texts, one for each row.

        Raises:
            RequestError: as `run`; or an adapter's problem type is not `single_label`.
        """
        found = self._answers("single_label", inputs, adapter, **choice)
        return [one for one in found if isinstance(one, Prediction)]

    def classify_tokens(
        self, inputs: Inputs, adapter: str | None = None, **choice: Unpack[Choice]
    ) -> list[list[Prediction | None]]:
        """Compute the labels of tokens, for each row one for each token; none where the mask says that it is padding.

        Raises:
            RequestError: as `run`; or an adapter's problem type is not `token`.
        """
        found = self._answers("token", inputs, adapter, **choice)
        return [list(one.tokens) for one in found if isinstance(one, TokenLabels)]

    def predict(self, inputs: Inputs, adapter: str | None = None, **choice: Unpack[Choice]) -> np.ndarray:
        """Compute the numbers of a regression, float32 [batch, numbers].

        Raises:
            RequestError: as `run`; or an adapter's problem type is not `regression`, or they give different numbers of
                it.
        """
        return stacked(*self._results("regression", inputs, adapter, **choice))

    def embed(self, inputs: Inputs, adapter: str | None = None, **choice: Unpack[Choice]) -> np.ndarray:
        """Compute vectors, float32 [batch, width].

        Raises:
            RequestError: as `run`; or an adapter's problem type is not `embedding`, or vectors differ in their widths.
        """
        return stacked(*self._results("embedding", inputs, adapter, **choice))

    def run_many(
        self,
        requests: Iterable[Request],
        *,
        token_budget: int = TOKEN_BUDGET,
        progress: Progress | bool | None = None,
        allow_mixed_rows: bool = False,
    ) -> list[Arrays]:
        """Compute the outputs of any number of requests, each with its own adapter.

        They are sorted by length, put together up to a number of tokens, where that takes less time than calls of their
        own, and padded where a mask hides it; adapters are mixed if the bundle has a bank. Where padding, or the other
        rows of a call, would change results, requests run with others of the same length, or alone.

        Args:
            requests: inputs of one row or several, and an adapter.
            token_budget: how many tokens a call may have, rows times the longest of them.
            progress: called with how many of how many requests are done; true draws a bar on stderr.
            allow_mixed_rows: as in `run`, for rows of different requests.

        Returns:
            The outputs of each request in the order of the requests, as `run` gives them for it alone, rounding aside.

        Raises:
            UsageError: the budget is below 1.
            RequestError: as `run`; nothing is computed if a request does not fit, and the message says which.
        """
        return self._run_items(self._items(requests), token_budget, progress, allow_mixed_rows)

    def classify_many(
        self,
        requests: Iterable[Request],
        *,
        token_budget: int = TOKEN_BUDGET,
        progress: Progress | bool | None = None,
        allow_mixed_rows: bool = False,
    ) -> list[list[Prediction]]:
        """Compute the labels of any number of requests, as `run_many` computes outputs; for each a label per row.

        Raises:
            UsageError, RequestError: as `run_many`; or an adapter's problem type is not `single_label`.
        """
        items, tasks = self._items(requests), []
        for item in items:
            with within(f"request {item.index}"):
                tasks.append(check_type(item.entry, "single_label"))
        found = self._run_items(items, token_budget, progress, allow_mixed_rows)
        answers = []
        for (entry, task), outputs in zip(tasks, found, strict=True):
            rows = [answer(task, result) for result in outputs[str(entry.output)]]
            answers.append([one for one in rows if isinstance(one, Prediction)])
        return answers

    def load(
        self,
        name: str,
        path: Path | str,
        *,
        labels: Sequence[str] | None = None,
        task: Task | ProblemType | None = None,
        on_demand: bool = False,
    ) -> None:
        """Load another adapter that was built for this graph.

        Names, shapes and finiteness are checked against the slots, and the number in the file that says for which base
        and graph it was made (`model_version`) against the bundle's.

        Args:
            name: what `run` will call it.
            path: its `.onnx_adapter` file; it is read now and, but for `on_demand`, never again.
            labels: the names of its classes.
            task: what its answers mean: the record that it was saved with, or its problem type; with labels alone, the
                classification that its head can do.
            on_demand: do not keep it in memory, but in a private copy that is read when a call needs it. With a bundle
                that was opened without private copies, it is the file itself that is read, and must not change.

        Raises:
            FileError: the file cannot be read.
            FormatError: it is not an adapter file, or is damaged; `TensorError` is a kind of it: it does not fit the
                slots of the graph.
            AdapterError: no adapter may have this name, labels and classes differ, its head is for another task, or it
                was made for another base or graph.
            RequestError: an adapter of this name is loaded already.
        """
        self._check_process()
        self._adapters.add(name, Path(path), Claim(labels, task), path, on_demand=on_demand)

    def load_bytes(
        self,
        name: str,
        data: bytes,
        *,
        labels: Sequence[str] | None = None,
        task: Task | ProblemType | None = None,
        where: object = "adapter",
    ) -> None:
        """Load another adapter from the bytes of an `.onnx_adapter` file; arguments and errors as of `load`.

        Args:
            name: what `run` will call it.
            data: the bytes.
            labels: the names of its classes.
            task: what its answers mean.
            where: names it in messages.
        """
        self._check_process()
        self._adapters.add(name, data, Claim(labels, task), where)

    def unload(self, name: str) -> None:
        """Forget an adapter; calls that run with it at this moment finish.

        Raises:
            RequestError: it is not loaded.
        """
        self._check_process()
        self._bank.forget(self._adapters.remove(name))

    def _check_process(self) -> None:
        """Raise UsageError in a fork of the process that opened the session."""
        if os.getpid() != self._process:
            raise UsageError(
                "the session was opened before this process was forked; its threads are not here",
                found=f"process {os.getpid()}",
                expected=f"process {self._process}, which opened it",
                fix="open sessions in the children, of a bundle that may be opened before the fork",
            )

    def _chosen(
        self,
        adapter: str | None,
        adapters: Sequence[str | None] | None,
        weights: Weighting | None,
        strength: Strength | None,
        inputs: Inputs,
    ) -> Chosen:
        """Return what a call chooses; each name is looked up once, so that its rows are alike."""
        self._check_process()
        if adapter is not None and adapters is not None:
            raise RequestError("one call has one choice", expected="`adapter` or `adapters`")
        if weights is not None and adapter is None:
            raise RequestError("weights are those of a fusion's members", expected="`adapter`, the name of the fusion")
        if strength is not None and weights is not None:
            what = "weights are the strengths of a fusion's members"
            raise RequestError(what, where="`strength`", fix="multiply the weights by it")
        several = isinstance(strength, Sequence) and not isinstance(strength, str)
        if adapters is None and several:
            adapters, adapter = [adapter] * len(next(iter(inputs.values()), ())), None
        if adapters is None:
            entry = None if adapter is None else self._adapters.entry(adapter)
            return entry if entry is None or strength is None else self._strengths.at(entry, cast("float", strength))
        found = {name: None if name is None else self._adapters.entry(name) for name in dict.fromkeys(adapters)}
        each = strength_of_each(strength, len(adapters))
        rows = ((found[name], one) for name, one in zip(adapters, each, strict=True))
        return [None if entry is None else self._strengths.at(entry, one) for entry, one in rows]

    def _compute(self, inputs: Inputs, chosen: Chosen, weights: Weighting | None, allow_mixed_rows: bool) -> Arrays:
        arrays = check_inputs(inputs, self._manifest.inputs, self._manifest.lengths)
        if isinstance(chosen, list):
            check_rows(arrays, chosen, self._manifest, allow_mixed_rows)
            return self._compute_rows(arrays, chosen)
        return self._compute_all(arrays, chosen, weights, allow_mixed_rows)

    def _compute_all(
        self, arrays: Arrays, entry: Entry | None, weights: Weighting | None = None, allow_mixed_rows: bool = False
    ) -> Arrays:
        """Run all rows through one adapter, or through the base; on what is kept of them, if anything is."""
        if self._prefixes.limit and weights is None and self._bank.takes([entry]):
            return self._compute_rows(arrays, [entry] * len(next(iter(arrays.values()))))
        session, wanted = self._graphs.session("slots"), self._outputs([entry])
        if self.provider == "cpu" and weights is None:  # arrays are fed as they lie here, in less time than values
            tensors = {} if entry is None else self._adapters.loaded(entry).tensors
            return run_session(session, {**arrays, **tensors}, wanted)
        feeds = {name: on_device(array) for name, array in arrays.items()}
        feeds.update(self._own_feeds(arrays, entry, weights, allow_mixed_rows))
        return run_values(session, feeds, wanted)

    def _compute_rows(self, arrays: Arrays, entries: Sequence[Entry | None]) -> Arrays:
        """Run each row through its own adapter; what rows that are alike have in common, once."""
        wanted, shared = self._outputs(entries), self._prefixes.feeds(arrays)
        if shared is not None:
            outputs = self._bank.run(shared, entries, wanted, "fanout")
        else:
            outputs = self._bank.run({name: on_device(array) for name, array in arrays.items()}, entries, wanted)
        return own_results(outputs, self._manifest, [None if entry is None else entry.output for entry in entries])

    def _own_feeds(
        self, arrays: Arrays, entry: Entry | None, weights: Weighting | None, allow_mixed_rows: bool
    ) -> Mapping[str, ort.OrtValue]:
        """Return the tensors of an adapter, with the weights that a call gives."""
        if entry is None:
            return {}
        feeds = self._adapters.loaded(entry).feeds
        if weights is None:
            return feeds
        rows = len(next(iter(arrays.values())))
        choices = [None] * rows if isinstance(weights, Mapping) else [sorted(row.items()) for row in weights]
        check_rows(arrays, choices, self._manifest, allow_mixed_rows)
        given = weight_tensors(entry, weights)
        return {**feeds, **{slot: on_device(tensor, self.provider) for slot, tensor in given.items()}}

    def _outputs(self, entries: Iterable[Entry | None]) -> list[str]:
        """Return the base's outputs, and those of heads that some row fills."""
        wanted = self._base_outputs | {entry.output for entry in entries if entry is not None}
        return [record.name for record in self._manifest.outputs if record.name in wanted]

    def _answers(
        self,
        problem: ProblemType | None,
        inputs: Inputs,
        adapter: str | None,
        context: Sequence[np.ndarray | None] | None = None,
        **choice: Unpack[Choice],
    ) -> list[Answer]:
        """Return the answer of each row; of one problem type, if it is given."""
        results, entries = self._results(problem, inputs, adapter, **choice)
        real = real_tokens(results, inputs, self._manifest)
        contexts = [None] * len(results) if context is None else context
        tasks = [check_type(entry, problem)[1] for entry in entries]
        return [answer(*row) for row in zip(tasks, results, real, contexts, strict=True)]

    def _results(
        self,
        problem: ProblemType | None,
        inputs: Inputs,
        adapter: str | None,
        *,
        adapters: Sequence[str | None] | None = None,
        weights: Weighting | None = None,
        strength: Strength | None = None,
        allow_mixed_rows: bool = False,
    ) -> tuple[list[np.ndarray], list[Entry]]:
        """Return what the heads give for each row, if they can answer, and each row's adapter."""
        if adapter is None and adapters is None:
            adapter = self._manifest.head
        if adapter is None and adapters is None:
            raise RequestError("no adapter is chosen", expected="`adapter`, or `adapters` with one for each row")
        chosen = self._chosen(adapter, adapters, weights, strength, inputs)
        entries = [check_type(entry, problem)[0] for entry in (chosen if isinstance(chosen, list) else [chosen])]
        outputs = self._compute(inputs, chosen, weights, allow_mixed_rows)
        if isinstance(chosen, list):
            return [own_classes(outputs[str(entry.output)][row]) for row, entry in enumerate(entries)], entries
        found = outputs[str(entries[0].output)]
        return list(found), entries * len(found)

    def _items(self, requests: Iterable[Request]) -> list[Item]:
        """Return the requests, each checked, its adapter looked up."""
        self._check_process()
        batches.batch_axis(self._manifest)
        items: list[Item] = []
        padded: dict[Entry | None, frozenset[str]] = {}
        twins: dict[bytes, int] = {}
        neutral, counting = self._manifest.padding_neutral, self._manifest.counts_padding
        for index, request in enumerate(requests):
            with within(f"request {index}"):
                arrays = check_inputs(request.inputs, self._manifest.inputs, self._manifest.lengths)
                entry = None if request.adapter is None else self._adapters.entry(request.adapter)
                entry = None if entry is None else self._strengths.at(entry, request.strength)
                if entry not in padded:  # as `build` found by trying
                    may_pad = neutral and (entry is None or not self._adapters.acts_in(entry, counting))
                    padded[entry] = self._maskable if may_pad else frozenset()
                shares = self._manifest.fanout is not None
                twin = twins.setdefault(digest_of(arrays.values()), index) if shares else 0
                items.append(batches.as_item(index, arrays, entry, padded[entry], self._manifest, twin))
        return items

    def _run_items(
        self, items: Sequence[Item], token_budget: int, progress: Progress | bool | None, allow_mixed_rows: bool
    ) -> list[Arrays]:
        adapters = self._resident if self._bank.takes(item.entry for item in items) else 1
        call_tokens = CALL_TOKENS if self.provider == "cpu" else token_budget  # on a GPU, launches outweigh padding
        on_progress = batches.draw_bar if progress is True else progress or None
        results: list[Arrays] = [{}] * len(items)
        done = 0
        for batch in batches.batches(items, self._manifest, token_budget, adapters, allow_mixed_rows, call_tokens):
            if len(batch) == 1:  # nothing to fill up or to take apart
                (item,) = batch
                results[item.index] = self._compute_all(item.arrays, item.entry)
            else:
                entries = [item.entry for item in batch for _ in range(item.rows)]
                arrays = batches.joined(batch, self._manifest)
                alike = all(entry is entries[0] for entry in entries)  # rows of one adapter need no bank
                outputs = self._compute_all(arrays, entries[0]) if alike else self._compute_rows(arrays, entries)
                for item, own in batches.taken_apart(outputs, batch, self._manifest):
                    results[item.index] = own
            done += len(batch)
            if on_progress is not None:
                on_progress(done, len(items))
        return results
