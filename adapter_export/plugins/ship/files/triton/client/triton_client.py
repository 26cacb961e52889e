"""Answer texts with the adapters of a bundle, whose graph runs on Triton.

    python triton_client.py BUNDLE --model NAME --adapter trec --text 'How far is the moon?' [--strength 0.5]

Texts become tokens here, and results become answers here, by the runtime of adapter-export. With `--by slots` the
tensors of the adapter go with each call, as one input; with `--by bank`, for a model whose graph holds the adapters,
the number of its row does. A strength, or weights of a fusion, change the tensors, so they need `--by slots`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import tritonclient.grpc as triton
from adapter_export_runtime import Bundle, Request
from adapter_export_runtime.errors import RequestError
from adapter_export_runtime.graph.tasks.asked import named_adapter
from adapter_export_runtime.runtime.adapter_file import parse_adapter
from adapter_export_runtime.runtime.answerer import Answerer, Row
from adapter_export_runtime.runtime.check_inputs import check_inputs, weight_tensors
from adapter_export_runtime.runtime.head_results import Head, real_tokens
from adapter_export_runtime.runtime.padding import without_padding
from adapter_export_runtime.runtime.strength import STRENGTH_KEY, Scaled, check_strength, scaled, scaled_parameters
from tritonclient.utils import np_to_triton_dtype

ABSENT = -1e30
"""Logits of classes that the adapter of a row does not have are below this in a bank."""


class TritonSession:
    """A session whose calls go to a model on Triton, for `Answerer` and `Bundle.texts`.

    Args:
        client: connected to a server.
        model: its name there.
        bundle: the bundle that the model was made from.
        by: `slots` sends the tensors of an adapter, `bank` the number of its row.
    """

    def __init__(self, client: triton.InferenceServerClient, model: str, bundle: Bundle, by: str = "slots") -> None:
        self._client, self._model, self._bundle, self._by = client, model, bundle, by
        self._manifest = bundle.manifest
        self._records = {record.name: record for record in self._manifest.adapters}
        self._loaded, self._sent = lru_cache(64)(self._read), lru_cache(64)(self._in_one)

    @property
    def base_head(self) -> str | None:
        """The adapter that answers by default."""
        return self._manifest.head

    @property
    def adapters(self) -> tuple[str, ...]:
        """The names of the adapters."""
        return tuple(self._records)

    def named(self, adapter: str | None) -> str | None:
        """Return the adapter of a call by its name: `None` for the base; UsageError if no adapter is named."""
        answering = {name: record.task is not None for name, record in self._records.items()}
        return named_adapter(adapter, answering, self._manifest.head)

    def head(self, adapter: str | None) -> Head:
        """Return an adapter with its task and the output of its head; RequestError if there is none of this name."""
        if adapter is None:
            return Head(None, None, None)
        record = self._record(adapter)
        return Head(adapter, record.task, record.output)

    def task(self, adapter: str) -> Any:
        """Return the task of an adapter; `None` if it has none."""
        return self.head(adapter).task

    def output(self, adapter: str) -> str | None:
        """Return the output that holds an adapter's result; `None` if it has no head."""
        return self.head(adapter).output

    def answering(self, adapter: str | None) -> Any:
        """Return the task by which an adapter answers; RequestError if it has none."""
        head = self.head(self.base_head if adapter is None else adapter)
        if head.task is None or head.output is None:
            raise RequestError("has no task, so it has no answers", where=f"adapter `{head.adapter}`")
        return head.task

    def may_pad(self, adapter: str | None) -> bool:
        """Return whether a row for an adapter may be padded without changing its result."""
        if adapter is None or not self._manifest.padding_neutral:
            return self._manifest.padding_neutral
        counting = [slot for slot in self._manifest.slots if slot.graph in self._manifest.counts_padding]
        tensors = self._loaded(adapter) if counting else {}
        return not any(
            tensors[slot.name].shape != slot.neutral or (tensors[slot.name] != slot.neutral_value).any()
            for slot in counting
        )

    def real_tokens(self, inputs: Mapping[str, np.ndarray], results: Sequence[np.ndarray]) -> Sequence[Any]:
        """Return for each row which tokens of its result are no padding; `None` where it has no axis of tokens."""
        return real_tokens(results, inputs, self._manifest)

    def run_many(self, requests: Sequence[Request], **_: object) -> list[dict[str, np.ndarray]]:
        """Run each request, of one row, in a call of its own, without padding that would change its result."""
        return [self._run(request) for request in requests]

    def _run(self, request: Request) -> dict[str, np.ndarray]:
        manifest = self._manifest
        arrays = check_inputs(request.inputs, manifest.inputs, manifest.lengths)
        if len(next(iter(arrays.values()))) != 1:
            raise RequestError("a request has one row", where=request.where or None)
        arrays, origin = without_padding(arrays, manifest.inputs, may_pad=self.may_pad(request.adapter))
        output = self.head(request.adapter).output
        base = () if request.head_only and output is not None else [record.name for record in manifest.base_outputs]
        axes = {record.name: record.axes for record in manifest.outputs if record.name in (*base, output)}
        fed, wanted = {**arrays, **self._fed(request)}, [triton.InferRequestedOutput(name) for name in axes]
        response = self._client.infer(self._model, [_input(*each) for each in fed.items()], outputs=wanted)
        results = {name: response.as_numpy(name) for name in axes}
        if self._by == "bank" and output is not None:
            results[output] = np.where(results[output] < ABSENT, -np.inf, results[output])
        if origin is None:
            return results
        return {name: origin.put_back(array, axes[name]) for name, array in results.items()}

    def _fed(self, request: Request) -> Mapping[str, np.ndarray]:
        strength, weights = check_strength(request.strength), request.weights
        if self._by == "slots" and request.adapter is not None:
            shares = None if weights is None else tuple(sorted(weights.items()))
            return {"adapter": self._sent(request.adapter, strength, shares)}
        if strength != 1 or weights is not None:
            fix = "call the model by slots, with an adapter"
            raise RequestError("the base and adapters in a bank have no strength and no weights", fix=fix)
        if self._by == "slots":
            return {}
        bank = self._manifest.bank
        return {bank.ids: np.array([bank.rows.index(request.adapter)], np.int64)}

    @cached_property
    def _scaled(self) -> Scaled:
        config = self._client.get_model_config(self._model).config
        text = config.parameters[STRENGTH_KEY].string_value or None
        return scaled_parameters(text, self._manifest.slots, f"the parameters of the model `{self._model}`")

    def _read(self, adapter: str) -> Mapping[str, np.ndarray]:
        """Return the tensors of an adapter, from its file in the bundle."""
        path = self._record(adapter).onnx_adapter
        data = (self._bundle.folder / path).read_bytes()
        (expected,) = (file.sha256 for file in self._manifest.files if file.path == path)
        if hashlib.sha256(data).hexdigest() != expected:
            raise RequestError("was changed since the bundle was opened", where=path)
        return parse_adapter(data, path)

    def _in_one(self, adapter: str, strength: float, weights: tuple[tuple[str, float], ...] | None) -> np.ndarray:
        """Return the one input that holds an adapter: the size of each slot, lengths, then the tensors."""
        tensors, slots = self._loaded(adapter), self._manifest.slots
        if weights is not None and strength != 1:
            raise RequestError("weights are the strengths of a fusion's members", fix="multiply the weights by it")
        if weights is not None:
            tensors = {**tensors, **weight_tensors(self._record(adapter), dict(weights))}
        if strength != 1:
            tensors = scaled(tensors, slots, self._scaled, strength, adapter)
        ordered = [tensors[slot.name] for slot in slots]
        lengths = [
            length
            for slot, tensor in zip(slots, ordered, strict=True)
            for length in [n for n, axis in zip(tensor.shape, slot.graph_axes, strict=True) if isinstance(axis, str)][
                1:
            ]
        ]
        header = np.array([*(tensor.size for tensor in ordered), *lengths], np.float32)
        return np.concatenate([header, *(tensor.ravel() for tensor in ordered)])

    def _record(self, adapter: str) -> Any:
        if adapter not in self._records:
            raise RequestError("is no adapter of the bundle", found=f"`{adapter}`", expected=", ".join(self._records))
        return self._records[adapter]


def _input(name: str, array: np.ndarray) -> triton.InferInput:
    tensor = triton.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
    tensor.set_data_from_numpy(np.ascontiguousarray(array))
    return tensor


def main() -> None:
    """Answer the texts of the command line, one JSON document per line."""
    parser = argparse.ArgumentParser(description="Answer texts with a bundle on Triton.")
    parser.add_argument("bundle")
    parser.add_argument("--url", default="localhost:8001", help="Triton's gRPC endpoint")
    parser.add_argument("--model", required=True)
    parser.add_argument("--by", choices=("slots", "bank"), default="slots")
    parser.add_argument("--adapter", required=True)
    parser.add_argument("--text", action="append", required=True)
    parser.add_argument(
        "--side", choices=("query", "document"), help="of the texts, where the adapter has both prefixes"
    )
    parser.add_argument("--strength", type=float, default=1.0, help="scale the updates of the adapter")
    parser.add_argument("--weights", type=json.loads, help="JSON object: override the member weights of a fusion")
    options = parser.parse_args()
    bundle = Bundle.open(options.bundle)
    session = TritonSession(triton.InferenceServerClient(options.url), options.model, bundle, options.by)
    rows = [
        Row(text, options.adapter, options.strength, options.weights, where=f"text {n}").on_side(options.side)
        for n, text in enumerate(options.text)
    ]
    for answered in Answerer(session, bundle.texts(session)).answer(rows):
        sys.stdout.write(json.dumps(answered.document(), ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
