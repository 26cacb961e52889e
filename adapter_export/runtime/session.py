"""Sessions: any number of adapters, chosen per call or per row."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TypedDict, Unpack, cast

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from adapter_export.decoding import Decoding
from adapter_export.errors import RequestError, UsageError, within
from adapter_export.format.axes import padded_axes
from adapter_export.graph.tasks import ProblemType, Task
from adapter_export.graph.tasks.answers import Answer, Prediction, TokenLabels, TokenVectors
from adapter_export.graph.tasks.asked import named_adapter
from adapter_export.modalities.modality import MediaFile
from adapter_export.providers import ProviderName
from adapter_export.reporting import SILENT, Reporter
from adapter_export.runtime import batches
from adapter_export.runtime.bank import Bank
from adapter_export.runtime.batches import CALL_TOKENS, TOKEN_BUDGET, Item, Request
from adapter_export.runtime.check_inputs import (
    Inputs,
    Weighting,
    check_inputs,
    check_rows,
    weight_tensors,
    weights_of_each,
)
from adapter_export.runtime.generation.decoder import Decoder
from adapter_export.runtime.generation.transcriber import SpeechOptions, transcriber_of
from adapter_export.runtime.graphs import Arrays, Feeds, Graphs
from adapter_export.runtime.head_results import (
    Head,
    check_context,
    check_type,
    own_classes,
    own_results,
    real_tokens,
    stacked,
)
from adapter_export.runtime.loaded_adapters import Adapters, Claim, Entry, Statistics
from adapter_export.runtime.padding import Origin, has_padding, misplaced, without_padding
from adapter_export.runtime.prefixes import Prefixes, digest_of
from adapter_export.runtime.strength import Strength, Strengths, check_strength, strength_of_each
from adapter_export.tables import Described

Chosen = Entry | list[Entry | None] | None
"""One adapter for all rows, or one per row; `None` is the base."""


_TWICE = "`strength` and `weights` exclude each other: weights are strengths of a fusion's members"


class Choice(TypedDict, total=False):
    """Further arguments of calls that answer, as in `Session.run`."""

    adapters: Sequence[str | None] | None
    weights: Weighting | None
    strength: Strength | None
    allow_mixed_rows: bool


class Session(Described):
    """Runs a bundle's graphs; `Bundle.session` opens one.

    Each call or row chooses an adapter, which is never a state of the session. Any number of threads may call it, with
    loads and unloads in between. Adapters are copied to memory or the device, so their files may be replaced or
    removed; those of on-demand adapters only if the bundle has private copies. A forked process cannot use the session
    (`UsageError`): its threads do not exist there, and locks may never be released.
    """

    def described(self) -> Mapping[str, object]:
        """Return the facts of `repr` and notebooks."""
        return {"adapters": self.adapters, "provider": self.provider}

    def __init__(self, graphs: Graphs, adapters: Adapters, resident: int, prefix_bytes: int = 0) -> None:
        self._graphs = graphs
        self._manifest = graphs.manifest
        self._adapters = adapters
        self._bank = Bank(graphs, adapters, resident)
        self._prefixes = Prefixes(graphs, prefix_bytes)
        self._strengths = Strengths(graphs, adapters)
        self._resident = resident
        self._maskable = padded_axes(graphs.manifest.inputs, graphs.manifest.base_outputs)
        self._batch_axis = batches.batch_axis(graphs.manifest)
        self._can_split = batches.rows_are_apart(graphs.manifest)
        self._base_outputs = {record.name for record in graphs.manifest.base_outputs}
        self._decoder: Decoder | None = None
        # compared in each call, since a fork copies the session without its threads
        self._process = os.getpid()

    @property
    def adapters(self) -> tuple[str, ...]:
        """The names of the adapters that are loaded."""
        return self._adapters.names

    @property
    def provider(self) -> ProviderName:
        """The provider that computes."""
        return self._graphs.provider

    @property
    def statistics(self) -> Statistics:
        """Hits, loads and evictions of its caches."""
        return Statistics(self._adapters.counts, self._bank.counts, self._prefixes.counts)

    def labels(self, adapter: str) -> tuple[str, ...] | None:
        """Return the labels of an adapter in the order of its logits, or `None` if it has none.

        Raises:
            RequestError: it is not loaded.
        """
        return self._adapters.entry(adapter).labels or None

    def task(self, adapter: str) -> Task | None:
        """Return the task of an adapter, or `None` if it has no head or an unknown task.

        Raises:
            RequestError: it is not loaded.
        """
        return self._adapters.entry(adapter).task

    def output(self, adapter: str) -> str | None:
        """Return the output of an adapter's head, or `None` without a head.

        Raises:
            RequestError: it is not loaded.
        """
        return self._adapters.entry(adapter).output

    def head(self, adapter: str | None) -> Head:
        """Return an adapter with its task and the output of its head; all are `None` for the base.

        Raises:
            RequestError: it is not loaded.
        """
        entry = None if adapter is None else self._adapters.entry(adapter)
        return Head(None, None, None) if entry is None else Head(entry.name, entry.task, entry.output)

    @property
    def base_head(self) -> str | None:
        """The adapter that is the base head, the default of calls without an adapter."""
        return self._manifest.head

    def named(self, adapter: str | None) -> str | None:
        """Return the adapter of a call by its name: `None` for the base, which the base head answers.

        Args:
            adapter: a name, or `base`. `None` is an error if adapters other than the base head have tasks.

        Raises:
            UsageError: no adapter is named.
        """
        answering = {name: self._adapters.entry(name).task is not None for name in self.adapters}
        return named_adapter(adapter, answering, self._manifest.head)

    def real_tokens(self, inputs: Inputs, results: Sequence[np.ndarray]) -> Sequence[npt.NDArray[np.bool_] | None]:
        """Return a mask of the real tokens of each row's result; `None` if it has no token axis."""
        return real_tokens(results, inputs, self._manifest)

    def may_pad(self, adapter: str | None) -> bool:
        """Return whether padding a row leaves the adapter's result unchanged.

        Raises:
            RequestError: it is not loaded.
        """
        return self._may_pad(None if adapter is None else self._adapters.entry(adapter))

    def may_mix(self, adapters: Collection[str | None]) -> bool:
        """Return whether rows with these adapters can run in one batch; `None` is the base.

        Raises:
            RequestError: one is not loaded.
        """
        entries = [self._entry(name) for name in adapters]
        return self._bank.takes(entries) and len({entry for entry in entries if entry is not None}) <= self._resident

    def answering(self, adapter: str | None = None) -> Task:
        """Return the task of an adapter. Default: the base head.

        Raises:
            RequestError: it is not loaded, has no head, or its head has no task.
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
        allow_padding: bool = False,
    ) -> Arrays:
        """Compute the outputs of the graph for a batch as given.

        `run_many` and `answer` return the result that each row has by itself: they remove padding and split batches
        where these would change it.

        Args:
            inputs: an array for each input of the base.
            adapter: the adapter of all rows. Default: the base.
            adapters: one adapter per row instead; `None` is the base. Needs the bundle's graph `bank`.
            weights: member weights, by name, that override those of an `adapter` that is a weighted fusion: one mapping
                for all rows, or one per row.
            strength: scale of the adapter's updates (1 = as trained, 0 = base, negative = subtract), one for all rows
                or one per row, which needs the graph `bank`. Heads are not scaled.
            allow_mixed_rows: mix adapters or weights in a batch even if the base is not batch-invariant.
            allow_padding: accept padding that changes a row's result.

        Returns:
            The base's outputs by name, and the result of an adapter's head at `output(adapter)`. With `adapters`,
            results are as wide as the widest row; a row contains −inf for classes that its adapter lacks, and NaN if
            its adapter has another head or none.

        Raises:
            RequestError: an adapter is not loaded, the inputs do not fit, the runtime cannot compute them, the bundle
                lacks the graph, rows would influence each other, or padding would change a result.
            InputError: the file of an on-demand adapter has changed.
        """
        chosen = self._chosen(adapter, adapters, weights, strength, inputs)
        arrays = check_inputs(inputs, self._manifest.inputs, self._manifest.lengths)
        if isinstance(chosen, list):
            check_rows(arrays, chosen, self._manifest, allow_mixed_rows)
        if not allow_padding:
            self._check_padding(arrays, chosen if isinstance(chosen, list) else [chosen])
        if isinstance(chosen, list):
            return self._compute_rows(arrays, chosen)
        return self._compute_all(arrays, chosen, weights, allow_mixed_rows)

    def fan_out(
        self, inputs: Inputs, adapters: Sequence[str | None], *, allow_mixed_rows: bool = False
    ) -> dict[str | None, Arrays]:
        """Compute every row with each of several adapters, in one call.

        Needs the bundle's graph `bank`. With the graph `fanout`, each row is computed once up to the first site of any
        adapter.

        Args:
            inputs: an array for each input of the base, of N rows.
            adapters: the M adapters; `None` is the base.
            allow_mixed_rows: as in `run`.

        Returns:
            The result of `run` for the N rows, up to rounding, by adapter.

        Raises:
            RequestError: as `run`; or `adapters` is empty.
        """
        self._check_process()
        if isinstance(adapters, str) or not adapters:
            raise RequestError(
                "`adapters` must be a list of names",
                where="`adapters`",
                found=repr(adapters),
                expected="at least one name; `None` is the base",
            )
        arrays = check_inputs(inputs, self._manifest.inputs, self._manifest.lengths)
        batch, count = self._manifest.inputs[0].axes[0], len(next(iter(arrays.values())))
        chosen = {name: None if name is None else self._adapters.entry(name) for name in adapters}
        entries = [entry for entry in chosen.values() for _ in range(count)]
        tiled = {name: np.tile(array, (len(chosen), *[1] * (array.ndim - 1))) for name, array in arrays.items()}
        check_rows(tiled, entries, self._manifest, allow_mixed_rows)
        self._check_padding(tiled, entries)
        outputs = self._compute_rows(tiled, entries)
        axes = {record.name: record.axes.index(batch) for record in self._manifest.outputs if batch in record.axes}
        by_adapter: dict[str | None, Arrays] = {}
        for at, (name, entry) in enumerate(chosen.items()):
            rows = np.arange(at * count, (at + 1) * count)
            wanted = [output for output in self._outputs([entry]) if output in outputs]
            by_adapter[name] = {
                output: outputs[output].take(rows, axes[output]) if output in axes else outputs[output]
                for output in wanted
            }
            if entry is not None and entry.output is not None:
                by_adapter[name][entry.output] = np.ascontiguousarray(own_classes(by_adapter[name][entry.output]))
        return by_adapter

    def run_on_device(
        self, inputs: Inputs, adapter: str | None = None, *, weights: Weighting | None = None
    ) -> dict[str, ort.OrtValue]:
        """Compute the outputs and keep them on the session's device, for further computation there.

        Raises:
            RequestError: as `run`.
        """
        entry = self._chosen(adapter, None, weights, None, inputs)
        assert not isinstance(entry, list)
        arrays = check_inputs(inputs, self._manifest.inputs, self._manifest.lengths)
        self._check_padding(arrays, [entry])
        feeds = {**arrays, **self._own_feeds(arrays, entry, weights, allow_mixed_rows=False)}
        return self._graphs.single().run_on_device(feeds, self._outputs([entry]))

    def answer(
        self,
        inputs: Inputs,
        adapter: str | None = None,
        *,
        context: Sequence[np.ndarray | None] | None = None,
        **choice: Unpack[Choice],
    ) -> list[Answer]:
        """Compute an answer for each row, by the task of its adapter.

        An answer depends neither on other rows nor on padding, as in `run_many`.

        Args:
            inputs: an array for each input of the base.
            adapter: the adapter of all rows, or `base` for the base head. Required if other adapters have tasks.
            context: a mask per row of the tokens that may be the answer, bool [tokens]; required by `span`.
            choice: `adapters`, `weights`, `strength` and `allow_mixed_rows`, as in `run`.

        Raises:
            RequestError: as `run`; or an adapter has no head or no known task, or a row for a `span` has no context.
        """
        return self._answers(None, inputs, adapter, context, **choice)

    def classify(self, inputs: Inputs, adapter: str | None = None, **choice: Unpack[Choice]) -> list[Prediction]:
        """Compute a label for each row.

        Raises:
            RequestError: as `run`; or an adapter's problem type is not `single_label`.
        """
        answers = self._answers("single_label", inputs, adapter, **choice)
        return [answer for answer in answers if isinstance(answer, Prediction)]

    def classify_tokens(
        self, inputs: Inputs, adapter: str | None = None, **choice: Unpack[Choice]
    ) -> list[list[Prediction | None]]:
        """Compute a label for each token; `None` for padding.

        Raises:
            RequestError: as `run`; or an adapter's problem type is not `token`.
        """
        answers = self._answers("token", inputs, adapter, **choice)
        return [list(answer.tokens) for answer in answers if isinstance(answer, TokenLabels)]

    def predict(self, inputs: Inputs, adapter: str | None = None, **choice: Unpack[Choice]) -> np.ndarray:
        """Compute the numbers of a regression, float32 [batch, numbers].

        Raises:
            RequestError: as `run`; or an adapter's problem type is not `regression`, or widths differ.
        """
        return stacked(*self._results("regression", inputs, adapter, **choice))

    def embed(self, inputs: Inputs, adapter: str | None = None, **choice: Unpack[Choice]) -> np.ndarray:
        """Compute vectors, float32 [batch, width].

        Raises:
            RequestError: as `run`; or an adapter's problem type is not `embedding`, or widths differ.
        """
        return stacked(*self._results("embedding", inputs, adapter, **choice))

    def embed_sparse(self, inputs: Inputs, adapter: str | None = None, **choice: Unpack[Choice]) -> np.ndarray:
        """Compute sparse vectors, float32 [batch, vocabulary].

        Raises:
            RequestError: as `run`; or an adapter's problem type is not `sparse_embedding`, or widths differ.
        """
        return stacked(*self._results("sparse_embedding", inputs, adapter, **choice))

    def embed_tokens(
        self,
        inputs: Inputs,
        adapter: str | None = None,
        *,
        context: Sequence[np.ndarray | None] | None = None,
        **choice: Unpack[Choice],
    ) -> list[np.ndarray]:
        """Compute a vector for each token, float32 [tokens, width] per row, without padding.

        Args:
            inputs: an array for each input of the base.
            adapter: as in `answer`.
            context: a mask per row of the tokens that have a vector, bool [tokens]. Default: all real tokens; the skip
                list of a task applies to texts only.
            choice: `adapters`, `weights`, `strength` and `allow_mixed_rows`, as in `run`.

        Raises:
            RequestError: as `run`; or an adapter's problem type is not `multi_vector`.
        """
        answers = self._answers("multi_vector", inputs, adapter, context, **choice)
        return [answer.vectors for answer in answers if isinstance(answer, TokenVectors)]

    def run_many(
        self,
        requests: Iterable[Request],
        *,
        token_budget: int = TOKEN_BUDGET,
        allow_mixed_rows: bool = False,
        reporter: Reporter = SILENT,
    ) -> list[Arrays]:
        """Compute the outputs of any number of requests, each with its own adapter.

        Requests are sorted by length and batched up to a token budget if that is faster than separate calls, and padded
        if a mask hides it; adapters are mixed if the bundle has a bank. Where padding or other rows of a batch would
        change results, rows share calls with rows of the same length or run by themselves, and padding in the inputs is
        removed ("What may share a call" in docs/reference/format.md).

        Args:
            requests: inputs of one or several rows, and an adapter.
            token_budget: maximum tokens of a call: rows times the longest row.
            allow_mixed_rows: as in `run`, for rows of different requests.
            reporter: receives the number of finished requests after each call; `ProgressBar()` draws a bar.

        Returns:
            The outputs of each request, in order. Each row has the result of `run` for that row by itself, up to
            rounding, and 0 at removed padding.

        Raises:
            UsageError: the budget is below 1.
            RequestError: as `run`; nothing is computed if a request does not fit, and the message names it.
        """
        items = self._items(requests, self._entry, "request", allow_mixed_rows, token_budget)
        return self._run_items(items, token_budget, allow_mixed_rows, reporter)

    def classify_many(
        self,
        requests: Iterable[Request],
        *,
        token_budget: int = TOKEN_BUDGET,
        allow_mixed_rows: bool = False,
        reporter: Reporter = SILENT,
    ) -> list[list[Prediction]]:
        """Compute a label for each row of any number of requests, batched as in `run_many`.

        Raises:
            UsageError, RequestError: as `run_many`; or an adapter's problem type is not `single_label`.
        """
        all_requests, tasks = list(requests), list[tuple[str, Task]]()
        for index, request in enumerate(all_requests):
            with within(f"request {index}"):
                entry, task = check_type(self._entry(request.adapter), "single_label")
                tasks.append((str(entry.output), task))
        outputs_of_all = self.run_many(
            [replace(request, head_only=True) for request in all_requests],
            token_budget=token_budget,
            allow_mixed_rows=allow_mixed_rows,
            reporter=reporter,
        )
        answers = []
        for (output, task), outputs in zip(tasks, outputs_of_all, strict=True):
            rows = [task.answer(result) for result in outputs[output]]
            answers.append([answer for answer in rows if isinstance(answer, Prediction)])
        return answers

    @property
    def decoder(self) -> Decoder:
        """Generates tokens, in a bundle of a language model with a cache; RequestError for any other."""
        if self._decoder is None:
            self._decoder = Decoder(self, self._manifest)
        return self._decoder

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        adapter: str | None = None,
        *,
        adapters: Sequence[str | None] | None = None,
        decoding: Decoding | None = None,
        ends: Collection[int] | None = None,
    ) -> list[list[int]]:
        """Generate token ids with a language model that has a cache; `Bundle.writer` generates texts.

        A decoder continues its prompt; an encoder–decoder generates a new text from it. A row keeps its adapter.

        Args:
            prompts: token ids of each row, at least one.
            adapter: the adapter of all rows; `None` is the base.
            adapters: one adapter per row instead. With the graph `bank`, they share calls.
            decoding: decoding options. Default: greedy, at most 64 tokens.
            ends: end-of-text tokens, which are not returned. Default: those of the manifest.

        Raises:
            RequestError: the bundle does not generate; an adapter is not loaded, or a prompt does not fit.
        """
        names = [adapter] * len(prompts) if adapters is None else adapters
        tokens: list[list[int]] = [[] for _ in prompts]
        last = self.decoder.record.end if ends is None else ends
        for row in self.decoder.write(prompts, names, decoding or Decoding(), last):
            tokens[row.place] = row.tokens
        return tokens

    def transcribe(
        self,
        files: Sequence[MediaFile],
        adapter: str | None = None,
        *,
        adapters: Sequence[str | None] | None = None,
        language: str | None = None,
        task: str | None = None,
        timestamps: bool = False,
        decoding: Decoding | None = None,
    ) -> list[list[int]]:
        """Generate the token ids of the text of each file; `Bundle.transcriber` generates texts.

        Args:
            files: paths, bytes of files, or samples as float32 arrays; those longer than a window take several.
            adapter: the adapter of all files; `None` is the base.
            adapters: one adapter per file instead. With the graph `bank`, they share calls.
            language: the code of the language. Default: that of the model, which usually detects it.
            task: `transcribe` or `translate`. Default: that of the model.
            timestamps: let the model write times.
            decoding: decoding options of each window. Default: greedy, as long as the model can write.

        Raises:
            RequestError: the bundle does not write texts of files; an adapter is not loaded, a file is too long, or the
                model has no token for the language, the task or times.
            FileError, DataError: a file cannot be read.
        """
        names, media = [adapter] * len(files) if adapters is None else adapters, self._manifest.media
        transcriber = transcriber_of(self.decoder, media, None, None)
        opened = transcriber.opened(files, names, SpeechOptions(language, task, timestamps, decoding))
        transcriber.write_windows(opened, decoding)
        return [one.tokens for one in opened]

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

        Its tensors must be finite and fit the slots, and its `model_version`, which identifies base and graph, must
        match the bundle's.

        Args:
            name: its name in calls.
            path: its `.onnx_adapter` file, read once unless `on_demand`.
            labels: its labels.
            task: its task as a record, or its problem type. Default: with labels, the classification of its head.
            on_demand: keep a private copy on disk and read that when a call needs it. If the bundle was opened without
                private copies, `path` itself is read, and must not change.

        Raises:
            FileError: the file cannot be read.
            FormatError: it is not an adapter file, or is damaged; the subclass `TensorError`: it does not fit the slots
                of the graph.
            AdapterError: the name is not allowed, labels and classes differ, its head is for another task, or it was
                made for another base or graph.
            RequestError: an adapter of this name is already loaded.
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
        """Load another adapter from the bytes of an `.onnx_adapter` file; errors as of `load`.

        Args:
            name: its name in calls.
            data: the bytes.
            labels: its labels.
            task: its task.
            where: its name in messages.
        """
        self._check_process()
        self._adapters.add(name, data, Claim(labels, task), where)

    def unload(self, name: str) -> None:
        """Unload an adapter; running calls with it finish.

        Raises:
            RequestError: it is not loaded.
        """
        self._check_process()
        self._bank.forget(self._adapters.remove(name))
        if self._decoder is not None:
            self._decoder.forget(name)

    def _check_process(self) -> None:
        """Raise UsageError in a fork of the process that opened the session."""
        if os.getpid() != self._process:
            raise UsageError(
                "the session was opened before this process was forked, and its threads do not exist here",
                found=f"process {os.getpid()}",
                expected=f"process {self._process}",
                fix="open sessions in each child; the bundle itself may be opened before the fork",
            )

    def _chosen(
        self,
        adapter: str | None,
        adapters: Sequence[str | None] | None,
        weights: Weighting | None,
        strength: Strength | None,
        inputs: Inputs,
    ) -> Chosen:
        """Return the adapters of a call. Each name is looked up once, so that all of its rows use the same one."""
        self._check_process()
        if adapter is not None and adapters is not None:
            raise RequestError("one call has one choice", expected="`adapter` or `adapters`")
        if weights is not None and adapter is None:
            raise RequestError("weights are those of a fusion's members", expected="`adapter`, the name of the fusion")
        if strength is not None and weights is not None:
            raise RequestError(_TWICE, where="`strength`", fix="multiply the weights by it")
        several = isinstance(strength, Sequence) and not isinstance(strength, str)
        if adapters is None and several:
            adapters, adapter = [adapter] * len(next(iter(inputs.values()), ())), None
        if adapters is None:
            entry = None if adapter is None else self._adapters.entry(adapter)
            return entry if entry is None or strength is None else self._strengths.at(entry, cast("float", strength))
        entries = {name: None if name is None else self._adapters.entry(name) for name in dict.fromkeys(adapters)}
        each = strength_of_each(strength, len(adapters))
        rows = ((entries[name], row_strength) for name, row_strength in zip(adapters, each, strict=True))
        return [None if entry is None else self._strengths.at(entry, row_strength) for entry, row_strength in rows]

    def _entry(self, adapter: str | None) -> Entry | None:
        return None if adapter is None else self._adapters.entry(adapter)

    def _may_pad(self, entry: Entry | None) -> bool:
        """Return whether padding changes neither the base nor this adapter, as measured by `build`."""
        manifest = self._manifest
        return manifest.padding_neutral and (
            entry is None or not manifest.counts_padding or not self._adapters.acts_in(entry, manifest.counts_padding)
        )

    def _check_padding(self, arrays: Arrays, entries: Sequence[Entry | None]) -> None:
        """Raise RequestError if padding would change the result of a row; a single entry is that of all rows."""
        inputs = self._manifest.inputs
        if not has_padding(arrays, inputs):
            return
        may_pad = {entry: self._may_pad(entry) for entry in dict.fromkeys(entries)}
        for row in range(len(next(iter(arrays.values())))):
            entry = entries[row if len(entries) > 1 else 0]
            if misplaced(arrays, inputs, row, may_pad=may_pad[entry]):
                raise RequestError(
                    "a row has padding that changes its result",
                    where=f"row {row}" if entry is None else f"row {row}, adapter `{entry.name}`",
                    expected="padding after the tokens" if may_pad[entry] else "a row without padding",
                    fix="call `run_many` or `answer`, which remove it; `allow_padding=True` runs the batch as it is",
                )

    def _compute_all(
        self,
        arrays: Arrays,
        entry: Entry | None,
        weights: Weighting | None = None,
        allow_mixed_rows: bool = False,
        *,
        head_only: bool = False,
    ) -> Arrays:
        """Run all rows with one adapter or the base, from cached activations if there are any."""
        by_row = self._prefixes.limit or self._graphs.main == "bank"
        if by_row and weights is None and self._bank.takes([entry]):
            return self._compute_rows(arrays, [entry] * len(next(iter(arrays.values()))), head_only=head_only)
        graph = self._graphs.single()
        feeds = {**arrays, **self._own_feeds(arrays, entry, weights, allow_mixed_rows)}
        return graph.run(feeds, self._outputs([entry], head_only=head_only))

    def _compute_rows(self, arrays: Arrays, entries: Sequence[Entry | None], *, head_only: bool = False) -> Arrays:
        """Run each row with its own adapter; equal rows share the computation below the adapters."""
        wanted, shared = self._outputs(entries, head_only=head_only), self._prefixes.feeds(arrays)
        if shared is not None:
            outputs = self._bank.run(shared, entries, wanted, "fanout")
        else:
            outputs = self._bank.run(arrays, entries, wanted)
        return own_results(outputs, self._manifest, [None if entry is None else entry.output for entry in entries])

    def _own_feeds(
        self, arrays: Arrays, entry: Entry | None, weights: Weighting | None, allow_mixed_rows: bool
    ) -> Feeds:
        """Return the tensors of an adapter with the call's weights, or neutral tensors for the base.

        The graph `slots` needs no tensors for the base.
        """
        if entry is None:
            return {} if self._graphs.main == "slots" else self._graphs.neutral
        loaded = self._adapters.load(entry)
        feeds: Feeds = loaded.tensors if self._graphs.in_place else loaded.feeds
        if weights is None:
            return feeds
        rows = len(next(iter(arrays.values())))
        choices = [None] * rows if isinstance(weights, Mapping) else [sorted(row.items()) for row in weights]
        check_rows(arrays, choices, self._manifest, allow_mixed_rows)
        tensors = weight_tensors(entry, weights)
        return {**feeds, **{slot: self._graphs.place(tensor) for slot, tensor in tensors.items()}}

    def _outputs(self, entries: Iterable[Entry | None], *, head_only: bool = False) -> list[str]:
        """Return the base's outputs, unless only heads are wanted, and the outputs of the rows' heads."""
        heads = {entry.output for entry in entries if entry is not None}
        wanted = heads if head_only and heads - {None} else heads | self._base_outputs
        return [record.name for record in self._manifest.outputs if record.name in wanted]

    def _answers(
        self,
        problem: ProblemType | None,
        inputs: Inputs,
        adapter: str | None,
        context: Sequence[np.ndarray | None] | None = None,
        **choice: Unpack[Choice],
    ) -> list[Answer]:
        """Return the answer of each row; RequestError if its adapter has another problem type than `problem`."""
        results, entries = self._results(problem, inputs, adapter, **choice)
        real = real_tokens(results, inputs, self._manifest)
        contexts = [None] * len(results) if context is None else context
        tasks = [check_type(entry, problem)[1] for entry in entries]
        for row, (task, allowed) in enumerate(zip(tasks, contexts, strict=True)):
            check_context(task, allowed, f"row {row}")
        rows = zip(tasks, results, real, contexts, strict=True)
        return [task.answer(result, mask, context) for task, result, mask, context in rows]

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
        """Return the result of each row's head, and its adapter; RequestError if it cannot answer."""
        self._check_process()
        if adapters is None:
            adapter = self.named(adapter) or self._manifest.head
        if adapter is None and adapters is None:
            raise RequestError("no adapter given", expected="`adapter`, or `adapters` with one for each row")
        if adapter is not None and adapters is not None:
            raise RequestError("one call has one choice", expected="`adapter` or `adapters`")
        arrays = check_inputs(inputs, self._manifest.inputs, self._manifest.lengths)
        rows = len(next(iter(arrays.values())))
        requested = [adapter] * rows if adapters is None else list(adapters)
        names = [None if name is None else self.named(name) for name in requested]
        if len(names) != rows:
            raise RequestError("`adapters` must have one entry per row", found=len(names), expected=rows)
        entries = {name: check_type(self._entry(name), problem)[0] for name in dict.fromkeys(names)}
        strengths, own_weights = strength_of_each(strength, rows), weights_of_each(weights, rows)
        choices = list(zip(names, strengths, own_weights, strict=True))
        if all(choice == choices[0] for choice in choices):
            requests = [Request(arrays, *choices[0], head_only=True)]
        else:
            each = ({name: array[row : row + 1] for name, array in arrays.items()} for row in range(rows))
            requests = [Request(row, *choice, head_only=True) for row, choice in zip(each, choices, strict=True)]
        items = self._items(
            requests,
            lambda name: entries[str(name)],
            "row" if len(requests) > 1 else "",
            allow_mixed_rows,
            TOKEN_BUDGET,
        )
        computed = self._run_items(items, TOKEN_BUDGET, allow_mixed_rows)
        outputs = [entries[str(request.adapter)].output for request in requests]
        results = [row for values, output in zip(computed, outputs, strict=True) for row in values[str(output)]]
        return results, [entries[name] for name in names]

    def _items(
        self,
        requests: Iterable[Request],
        find: Callable[[str | None], Entry | None],
        word: str,
        allow_mixed_rows: bool,
        token_budget: int,
    ) -> list[Item]:
        """Return checked requests with their adapters, without padding that would change a result.

        A request becomes one item, or one per row if its rows may not share a call or exceed the budget. Messages name
        a request by `word` and its number.
        """
        self._check_process()
        manifest, inputs = self._manifest, self._manifest.inputs
        items: list[Item] = []
        twins: dict[bytes, int] = {}
        may_pad: dict[Entry | None, bool] = {}
        for index, request in enumerate(requests):
            where = request.where or (word and f"{word} {index}")
            with within(where) if where else nullcontext():
                arrays = check_inputs(request.inputs, inputs, manifest.lengths)
                entry = self._at_choice(find(request.adapter), request)
                if entry not in may_pad:
                    may_pad[entry] = self._may_pad(entry)
                padded = self._maskable if may_pad[entry] else frozenset[str]()
                for part, origin in self._parts(arrays, may_pad[entry], allow_mixed_rows, token_budget):
                    rows, sizes = len(next(iter(part.values()))), batches.sizes_of(part, inputs, self._batch_axis)
                    # equal rows beside each other share a call, and the computation below the adapters
                    twin = 0 if manifest.fanout is None else twins.setdefault(digest_of(part.values()), index)
                    items.append(Item(index, request, part, entry, rows, sizes, padded, twin, origin))
        return items

    def _parts(
        self, arrays: Arrays, may_pad: bool, allow_mixed_rows: bool, token_budget: int
    ) -> Sequence[tuple[Arrays, Origin | None]]:
        """Return the inputs of a request as a whole, or by row if rows may not share a call or exceed the budget."""
        inputs, rows = self._manifest.inputs, len(next(iter(arrays.values())))
        moves = has_padding(arrays, inputs) and any(
            misplaced(arrays, inputs, row, may_pad=may_pad) for row in range(rows)
        )
        tokens = rows * sum(batches.sizes_of(arrays, inputs, self._batch_axis).values())
        apart = tokens > token_budget or not (self._manifest.batch_invariant or allow_mixed_rows)
        if not moves and (rows == 1 or not apart or not self._can_split):
            return [(arrays, None)]
        if rows > 1 and not self._can_split:
            raise RequestError("rows with padding cannot be separated in this base", fix="pass them one by one")
        parts = []
        for row in range(rows):
            part, origin = {name: array[row : row + 1] for name, array in arrays.items()}, None
            if moves:
                part, origin = without_padding(part, inputs, may_pad=may_pad)
                part = check_inputs(part, inputs, self._manifest.lengths)  # shorter than before
            parts.append((part, origin))
        return parts

    def _at_choice(self, entry: Entry | None, request: Request) -> Entry | None:
        """Return the adapter of a request at its strength; RequestError for a wrong strength or weights."""
        if request.weights is None:
            return None if entry is None else self._strengths.at(entry, request.strength)
        if entry is None:
            raise RequestError("weights are those of a fusion's members", expected="`adapter`, the name of the fusion")
        if check_strength(request.strength) != 1.0:
            raise RequestError(_TWICE, where="`strength`", fix="multiply the weights by it")
        weight_tensors(entry, request.weights)  # checked before anything is computed
        return entry

    def _run_items(
        self, items: Sequence[Item], token_budget: int, allow_mixed_rows: bool, reporter: Reporter = SILENT
    ) -> list[Arrays]:
        count = 1 + max((item.index for item in items), default=-1)
        adapters = self._resident if self._bank.takes(item.entry for item in items) else 1
        # on a GPU, launches outweigh padding
        call_tokens = CALL_TOKENS if self._graphs.row.processor == "cpu" else token_budget
        results: list[Arrays | None] = [None] * len(items)
        parts = [0] * count  # pending items of each request
        for item in items:
            parts[item.index] += 1
        places = {id(item): place for place, item in enumerate(items)}
        done = 0
        for batch in batches.batches(items, self._manifest, token_budget, adapters, allow_mixed_rows, call_tokens):
            for item, arrays in self._run_batch(batch):
                results[places[id(item)]] = arrays
                parts[item.index] -= 1
                done += not parts[item.index]
            reporter.step("running requests", done, count)
        return batches.by_request(items, [result for result in results if result is not None], self._manifest)

    def _run_batch(self, batch: Sequence[Item]) -> Iterable[tuple[Item, Arrays]]:
        """Return each item of a call with its outputs."""
        entries = [item.entry for item in batch for _ in range(item.rows)]
        head_only = all(item.head_only for item in batch)
        weights = None if batch[0].weights is None else [item.weights or {} for item in batch for _ in range(item.rows)]
        if len(batch) == 1:  # nothing to pad or to split
            (item,) = batch
            return [(item, self._compute_all(item.arrays, item.entry, weights, True, head_only=head_only))]
        arrays = batches.joined(batch, self._manifest)
        if all(entry is entries[0] for entry in entries):  # one adapter needs no bank
            outputs = self._compute_all(arrays, entries[0], weights, True, head_only=head_only)
        else:
            outputs = self._compute_rows(arrays, entries, head_only=head_only)
        return batches.taken_apart(outputs, batch, self._manifest)
