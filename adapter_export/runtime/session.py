"""A session: one graph, any number of adapters, a choice per call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

import numpy as np
import onnxruntime as ort

from adapter_export.errors import RequestError
from adapter_export.format.files import read_bytes
from adapter_export.format.manifest import Manifest
from adapter_export.graph.adapter import check_name
from adapter_export.graph.tasks import Task
from adapter_export.runtime.adapter_file import model_version_of, parse_adapter
from adapter_export.runtime.loaded import Claim, LoadedAdapter, check_adapter, check_model_version
from adapter_export.runtime.predict import Prediction, predict, predict_tokens
from adapter_export.runtime.providers import FAILURES, Provider
from adapter_export.runtime.request import check_inputs

_FATAL_ONLY = 4

_METHODS: Mapping[Task, str] = {
    "sequence_classification": "classify",
    "token_classification": "classify_tokens",
    "regression": "predict",
    "embedding": "embed",
}


@dataclass(frozen=True)
class _Resident:
    """An adapter with its tensors where the graph runs; on the CPU they lie in the arrays of `adapter` itself."""

    adapter: LoadedAdapter
    feeds: Mapping[str, ort.OrtValue]


class Session:
    """Runs a bundle's graph; made by `Bundle.session`.

    The adapter is a choice of each call and never a state of the session, so any number of threads may run at once,
    with loads and unloads in between. Adapters lie in memory of their own, or on the device: their files may be
    overwritten or removed.
    """

    def __init__(self, session: ort.InferenceSession, manifest: Manifest, provider: Provider) -> None:
        self._session = session
        self._manifest = manifest
        self._provider = provider
        self._options = ort.RunOptions()
        self._options.log_severity_level = _FATAL_ONLY  # a call that fails raises; it need not be logged as well
        self._residents: dict[str, _Resident] = {}
        self._lock = Lock()

    @property
    def adapters(self) -> tuple[str, ...]:
        """The names of the adapters that are loaded."""
        return tuple(self._residents)

    def labels(self, adapter: str) -> tuple[str, ...] | None:
        """The names of an adapter's classes in the order of its logits; none if it has no head or they are not known.

        Raises:
            RequestError: it is not loaded.
        """
        return self._resident(adapter).adapter.labels

    def task(self, adapter: str) -> Task | None:
        """What an adapter's head is for; none if it has no head or nobody said it.

        Raises:
            RequestError: it is not loaded.
        """
        return self._resident(adapter).adapter.task

    def output(self, adapter: str) -> str | None:
        """The output that holds the result of an adapter's head; none if it has no head.

        Raises:
            RequestError: it is not loaded.
        """
        return self._resident(adapter).adapter.output

    def run(self, inputs: Mapping[str, np.ndarray], adapter: str | None = None) -> dict[str, np.ndarray]:
        """Compute the outputs.

        Args:
            inputs: an array for each input of the base.
            adapter: the adapter to run with; none is the base as it is.

        Returns:
            The base's outputs by name and, for an adapter with a head, the result of its task at `output(adapter)`.

        Raises:
            RequestError: the adapter is not loaded, the inputs do not fit, or ONNX Runtime cannot compute them.
        """
        resident = None if adapter is None else self._resident(adapter)
        arrays = check_inputs(inputs, self._manifest.inputs)
        feeds = {name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in arrays.items()}
        feeds.update({} if resident is None else resident.feeds)
        names = self._outputs(resident)
        try:
            values = self._session.run_with_ort_values(names, feeds, self._options)
        except FAILURES as error:
            raise RequestError(
                "ONNX Runtime cannot compute these inputs",
                found=str(error).partition("\n")[0],
                fix="check their lengths against what the base takes",
            ) from error
        return {name: value.numpy() for name, value in zip(names, values, strict=True)}

    def classify(self, inputs: Mapping[str, np.ndarray], adapter: str) -> list[Prediction]:
        """Compute the labels of texts, one for each row.

        Raises:
            RequestError: as `run`; or the adapter's task is not `sequence_classification`.
        """
        logits = self._result(inputs, adapter, "sequence_classification")
        return predict(logits, self.labels(adapter) or ())

    def classify_tokens(self, inputs: Mapping[str, np.ndarray], adapter: str) -> list[list[Prediction | None]]:
        """Compute the labels of tokens, for each row one for each token; none where the mask says that it is padding.

        Raises:
            RequestError: as `run`; or the adapter's task is not `token_classification`.
        """
        logits = self._result(inputs, adapter, "token_classification")
        masks = [inputs[record.name] != 0 for record in self._manifest.inputs if record.role == "mask"]
        fitting = [mask for mask in masks if mask.shape == logits.shape[:2]]
        return predict_tokens(logits, self.labels(adapter) or (), fitting[0] if fitting else None)

    def predict(self, inputs: Mapping[str, np.ndarray], adapter: str) -> np.ndarray:
        """Compute the numbers of a regression, [batch, numbers] in float32.

        Raises:
            RequestError: as `run`; or the adapter's task is not `regression`.
        """
        return self._result(inputs, adapter, "regression")

    def embed(self, inputs: Mapping[str, np.ndarray], adapter: str) -> np.ndarray:
        """Compute vectors, [batch, width] in float32.

        Raises:
            RequestError: as `run`; or the adapter's task is not `embedding`.
        """
        return self._result(inputs, adapter, "embedding")

    def load(
        self, name: str, path: Path | str, *, labels: Sequence[str] | None = None, task: Task | None = None
    ) -> None:
        """Load another adapter that was built for this graph.

        Names, shapes and finiteness are held against the slots, and the number in the file that says for which base and
        graph it was made (`model_version`) against the bundle's.

        Args:
            name: what `run` will call it.
            path: its `.onnx_adapter` file; it is read now and never again.
            labels: the names of its classes.
            task: what its head is for; with labels, the classification that its head can do if not given.

        Raises:
            FileError: the file cannot be read.
            FormatError: it is not an adapter file, or is damaged; `TensorError` is a kind of it: it does not fit the
                slots of the graph.
            AdapterError: no adapter may have this name, labels and classes differ, its head is for another task, or it
                was made for another base or graph.
            RequestError: an adapter of this name is loaded already.
        """
        self.load_bytes(name, read_bytes(Path(path)), Claim(labels, task), where=path)

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
        check_name(name)
        adapter = check_adapter(parse_adapter(data, where), self._manifest, claim or Claim(), where)
        check_model_version(model_version_of(data), self._manifest, where)
        feeds = {slot: self._on_device(tensor) for slot, tensor in adapter.tensors.items()}
        with self._lock:
            if name in self._residents:
                raise RequestError(
                    "an adapter of this name is loaded already", found=f"`{name}`", fix="unload it, or use another name"
                )
            self._residents = {**self._residents, name: _Resident(adapter, feeds)}

    def unload(self, name: str) -> None:
        """Forget an adapter; calls that run with it at this moment end well.

        Raises:
            RequestError: it is not loaded.
        """
        with self._lock:
            self._resident(name)
            self._residents = {other: resident for other, resident in self._residents.items() if other != name}

    def _resident(self, name: str) -> _Resident:
        residents = self._residents
        if name not in residents:
            raise RequestError(
                "is not loaded",
                where=f"adapter `{name}`",
                expected=f"one of {', '.join(f'`{other}`' for other in residents) or 'none'}",
                fix="load it, or choose one that is loaded",
            )
        return residents[name]

    def _on_device(self, tensor: np.ndarray) -> ort.OrtValue:
        return ort.OrtValue.ortvalue_from_numpy(tensor, self._provider, 0)

    def _outputs(self, resident: _Resident | None) -> list[str]:
        head = None if resident is None else resident.adapter.output
        return [*(record.name for record in self._manifest.base_outputs), *([] if head is None else [head])]

    def _result(self, inputs: Mapping[str, np.ndarray], adapter: str, task: Task) -> np.ndarray:
        """What the adapter's head gives, if it is for this task.

        Raises:
            RequestError: it is for another one.
        """
        found, output = self.task(adapter), self.output(adapter)
        unknown = "call `run`, or give `labels` or `task` to `load`"
        if found != task or output is None:
            raise RequestError(
                f"an adapter with another task cannot do `{task}`",
                where=f"adapter `{adapter}`",
                found="no known task" if found is None else f"the task `{found}`",
                fix=unknown if found is None else f"call `{_METHODS[found]}`",
            )
        return self.run(inputs, adapter)[output]
