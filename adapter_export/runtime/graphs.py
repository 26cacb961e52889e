"""The graphs of a bundle in sessions of ONNX Runtime, each opened when it is first needed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from threading import Lock

import numpy as np
import onnxruntime as ort

from adapter_export.errors import RequestError
from adapter_export.format.manifest import Flavour, Manifest
from adapter_export.runtime.providers import FAILURES, Provider

_FATAL_ONLY = 4

_MISSING: Mapping[str, str] = {
    "bank": "rows of one batch through different adapters",
    "mixture": "mixtures of adapters",
}


class Graphs:
    """Opens and runs the graphs of a bundle; any number of threads may call.

    Args:
        manifest: the bundle's.
        provider: where the graphs run.
        open_graph: opens the file at a path of the manifest.
    """

    def __init__(
        self, manifest: Manifest, provider: Provider, open_graph: Callable[[str], ort.InferenceSession]
    ) -> None:
        self.manifest = manifest
        self.provider: Provider = provider
        self._open_graph = open_graph
        self._sessions: dict[Flavour, ort.InferenceSession] = {}
        self._lock = Lock()
        self._options = ort.RunOptions()
        self._options.log_severity_level = _FATAL_ONLY  # a call that fails raises; it need not be logged as well

    def session(self, flavour: Flavour) -> ort.InferenceSession:
        """The session of a flavour.

        Raises:
            RequestError: the bundle does not have it.
            FormatError: ONNX Runtime cannot open it.
        """
        if flavour not in self._sessions:
            with self._lock:
                if flavour not in self._sessions:
                    self._sessions[flavour] = self._open_graph(self._path(flavour))
        return self._sessions[flavour]

    def run(self, flavour: Flavour, names: Sequence[str], feeds: Mapping[str, ort.OrtValue]) -> dict[str, np.ndarray]:
        """Compute outputs.

        Raises:
            RequestError: the bundle does not have the flavour, or ONNX Runtime cannot compute these inputs.
        """
        session = self.session(flavour)
        try:
            values = session.run_with_ort_values(list(names), dict(feeds), self._options)
        except FAILURES as error:
            raise incomputable(error) from error
        return {name: value.numpy() for name, value in zip(names, values, strict=True)}

    def _path(self, flavour: Flavour) -> str:
        path = self.manifest.graphs.get(flavour)
        if path is None:
            flavours = ",".join(dict.fromkeys(("slots", "inputs", flavour)))
            raise RequestError(
                f"the bundle has no graph for {_MISSING.get(flavour, flavour)}",
                found=", ".join(f"`{name}`" for name in self.manifest.graphs),
                expected=f"`{flavour}`",
                fix=f"build it with `--flavours {flavours}`, or give each call one `adapter`",
            )
        return path


def incomputable(error: Exception) -> RequestError:
    """The named error for what ONNX Runtime raises in a call."""
    return RequestError(
        "ONNX Runtime cannot compute these inputs",
        found=str(error).partition("\n")[0],
        fix="check their lengths against what the base takes",
    )
