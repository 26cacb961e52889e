"""A session: any number of adapters, a choice per call or per row."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort

from adapter_export.errors import within
from adapter_export.format.files import read_bytes
from adapter_export.graph.tasks import Task
from adapter_export.runtime.answers import Prediction, check_task, label_rows, label_tokens
from adapter_export.runtime.bank import Bank
from adapter_export.runtime.calls import Calls, Inputs, Outputs, Rows, Weighting
from adapter_export.runtime.catalogue import Catalogue, Statistics
from adapter_export.runtime.graphs import Graphs, Provider
from adapter_export.runtime.loaded import Claim
from adapter_export.runtime.loading import Loader
from adapter_export.runtime.many import TOKEN_BUDGET, ManyCalls, PaddingRule, Progress, Request, as_progress


class Session:
    """Runs a bundle's graphs; made by `Bundle.session`.

    The adapter is a choice of each call, or of each row, and never a state of the session, so any number of threads may
    run at once, with loads and unloads in between. Adapters lie in memory of their own, or on the device: their files
    may be overwritten or removed, unless they are loaded on demand.
    """

    def __init__(self, graphs: Graphs, catalogue: Catalogue, loader: Loader, resident: int) -> None:
        self._graphs = graphs
        self._manifest = graphs.manifest
        self._catalogue = catalogue
        self._loader = loader
        self._bank = Bank(graphs, catalogue, resident)
        self._calls = Calls(graphs, catalogue, self._bank)
        self._many = ManyCalls(self._calls, self._bank, PaddingRule(graphs, catalogue), resident)

    @property
    def adapters(self) -> tuple[str, ...]:
        """The names of the adapters that are loaded."""
        return self._catalogue.names

    @property
    def provider(self) -> Provider:
        """Where it computes."""
        return self._graphs.provider

    @property
    def statistics(self) -> Statistics:
        """Hits, loads and evictions so far."""
        return Statistics(self._catalogue.counts, self._bank.counts)

    def labels(self, adapter: str) -> tuple[str, ...] | None:
        """The names of an adapter's classes in the order of its logits; none if it has no head or they are not known.

        Raises:
            RequestError: it is not loaded.
        """
        return self._catalogue.entry(adapter).labels

    def task(self, adapter: str) -> Task | None:
        """What an adapter's head is for; none if it has no head or nobody said it.

        Raises:
            RequestError: it is not loaded.
        """
        return self._catalogue.entry(adapter).task

    def output(self, adapter: str) -> str | None:
        """The output that holds the result of an adapter's head; none if it has no head.

        Raises:
            RequestError: it is not loaded.
        """
        return self._catalogue.entry(adapter).output

    def run(
        self,
        inputs: Inputs,
        adapter: str | None = None,
        *,
        adapters: Rows | None = None,
        weights: Weighting | None = None,
        allow_mixed_rows: bool = False,
    ) -> Outputs:
        """Compute the outputs.

        Args:
            inputs: an array for each input of the base.
            adapter: the adapter to run all rows with; without it, and without `adapters`, the base as it is.
            adapters: instead, an adapter for each row; none is the base. Needs the bundle's graph `bank`.
            weights: with an `adapter` that is a weighted fusion: a number for each of its members, by name, in the
                place of its own; for all rows, or a mapping for each row.
            allow_mixed_rows: put rows of different adapters or weights into one call although the base lets the rows of
                a batch influence each other.

        Returns:
            The base's outputs by name, and the results of heads: of an adapter with a head at `output(adapter)`. In a
            call with `adapters`, they are as wide as the widest of its rows; a row holds −inf for classes
            that its adapter does not have, and NaN where its adapter has another head or none.

        Raises:
            RequestError: an adapter is not loaded, the inputs do not fit, ONNX Runtime cannot compute them, the bundle
                lacks the graph, or rows would influence each other.
            InputError: the file of an adapter that is read on demand is not what it was.
        """
        return self._calls.run(inputs, adapter, adapters, weights, allow_mixed_rows)

    def run_many(
        self,
        requests: Iterable[Request],
        *,
        token_budget: int = TOKEN_BUDGET,
        progress: Progress | bool | None = None,
        allow_mixed_rows: bool = False,
    ) -> list[Outputs]:
        """Compute the outputs of any number of requests, each with its own adapter.

        They are sorted by length, put together up to a number of tokens, and padded where a mask hides it; adapters are
        mixed if the bundle has a bank. Where padding, or the other rows of a call, would change results, requests run
        with others of the same length, or alone.

        Args:
            requests: inputs of one row or several, and an adapter.
            token_budget: how many tokens a call may have, rows times the longest of them.
            progress: is told how many of how many requests are done; true draws a bar on stderr.
            allow_mixed_rows: as in `run`, for rows of different requests.

        Returns:
            The outputs of each request in the order of the requests, as `run` gives them for it alone, rounding aside.

        Raises:
            UsageError: the budget is below 1.
            RequestError: as `run`; nothing is computed if a request does not fit, and the message says which.
        """
        return self._many.run(self._many.items(requests), token_budget, as_progress(progress), allow_mixed_rows)

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
            UsageError, RequestError: as `run_many`; or an adapter's task is not `sequence_classification`.
        """
        items = self._many.items(requests)
        outputs = []
        for item in items:
            with within(f"request {item.index}"):
                outputs.append(check_task(item.entry, "sequence_classification"))
        results = self._many.run(items, token_budget, as_progress(progress), allow_mixed_rows)
        return [
            label_rows(list(found[output]), [item.entry] * item.rows)
            for item, output, found in zip(items, outputs, results, strict=True)
        ]

    def run_on_device(self, inputs: Inputs, adapter: str | None = None) -> dict[str, ort.OrtValue]:
        """Compute the outputs and leave them where the session computes: on the GPU, for what is done there next.

        Raises:
            RequestError: as `run`.
        """
        return self._calls.on_device(inputs, adapter)

    def classify(
        self,
        inputs: Inputs,
        adapter: str | None = None,
        *,
        adapters: Sequence[str] | None = None,
        weights: Weighting | None = None,
    ) -> list[Prediction]:
        """Compute the labels of texts, one for each row, by one adapter or by one for each row; `weights` as in `run`.

        Raises:
            RequestError: as `run`; or an adapter's task is not `sequence_classification`.
        """
        results, entries = self._calls.results(inputs, adapter, adapters, "sequence_classification", weights)
        return label_rows(results, entries)

    def classify_tokens(
        self, inputs: Inputs, adapter: str | None = None, *, adapters: Sequence[str] | None = None
    ) -> list[list[Prediction | None]]:
        """Compute the labels of tokens, for each row one for each token; none where the mask says that it is padding.

        Raises:
            RequestError: as `run`; or an adapter's task is not `token_classification`.
        """
        results, entries = self._calls.results(inputs, adapter, adapters, "token_classification")
        return label_tokens(results, entries, inputs, self._manifest)

    def predict(self, inputs: Inputs, adapter: str) -> np.ndarray:
        """Compute the numbers of a regression, [batch, numbers] in float32.

        Raises:
            RequestError: as `run`; or the adapter's task is not `regression`.
        """
        return np.stack(self._calls.results(inputs, adapter, None, "regression")[0])

    def embed(self, inputs: Inputs, adapter: str) -> np.ndarray:
        """Compute vectors, [batch, width] in float32.

        Raises:
            RequestError: as `run`; or the adapter's task is not `embedding`.
        """
        return np.stack(self._calls.results(inputs, adapter, None, "embedding")[0])

    def load(
        self,
        name: str,
        path: Path | str,
        *,
        labels: Sequence[str] | None = None,
        task: Task | None = None,
        on_demand: bool = False,
    ) -> None:
        """Load another adapter that was built for this graph.

        Names, shapes and finiteness are held against the slots, and the number in the file that says for which base and
        graph it was made (`model_version`) against the bundle's.

        Args:
            name: what `run` will call it.
            path: its `.onnx_adapter` file; it is read now and, but for `on_demand`, never again.
            labels: the names of its classes.
            task: what its head is for; with labels, the classification that its head can do if not given.
            on_demand: do not keep it in memory, but read the file again when a call needs it. It must not change.

        Raises:
            FileError: the file cannot be read.
            FormatError: it is not an adapter file, or is damaged; `TensorError` is a kind of it: it does not fit the
                slots of the graph.
            AdapterError: no adapter may have this name, labels and classes differ, its head is for another task, or it
                was made for another base or graph.
            RequestError: an adapter of this name is loaded already.
        """
        claim, file = Claim(labels, task), Path(path)
        if on_demand:
            self._catalogue.add(self._loader.from_file(name, file, claim))
        else:
            self._catalogue.add(self._loader.from_bytes(name, read_bytes(file), claim, path))

    def load_bytes(self, name: str, data: bytes, claim: Claim | None = None, *, where: object = "adapter") -> None:
        """Load another adapter from the bytes of an `.onnx_adapter` file.

        Args:
            name: what `run` will call it.
            data: the bytes.
            claim: what is said about its head.
            where: names it in messages.

        Raises:
            FormatError, AdapterError, RequestError: as `load`.
        """
        self._catalogue.add(self._loader.from_bytes(name, data, claim or Claim(), where))

    def unload(self, name: str) -> None:
        """Forget an adapter; calls that run with it at this moment end well.

        Raises:
            RequestError: it is not loaded.
        """
        self._bank.forget(self._catalogue.remove(name))
