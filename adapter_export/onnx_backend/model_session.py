"""Sessions on models in memory whose weights lie in a folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import Timer

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from adapter_export.errors import BaseModelError, FormatError, RequestError
from adapter_export.runtime import graphs
from adapter_export.safe_io.parsers import parsing

_PACKED_BYTES = 128 * 2**20
"""The most weights of which ONNX Runtime may make a second copy, in the order that suits its kernels."""

_MOST_SECONDS = 60.0
"""Maximum time that a graph of unknown origin may take for inputs of a few tokens."""


def open_session(
    model: ir.Model, folder: Path, *, optimize: bool = True, pack: bool = True, leave_out: Sequence[str] = ()
) -> ort.InferenceSession:
    """Open a model on the CPU.

    Large weights are mapped from their file, not read: they stay what the operating system can take out of memory.
    With `optimize` ONNX Runtime may rewrite the graph, but not with the optimizers to `leave_out`. With `pack` it may
    copy weights into the order that suits its kernels, which many runs are worth; quantised ones, which compute
    something else when they are not packed, are copied in any case. `BaseModelError` if it refuses the model.
    """
    values = (value.const_value for value in model.graph.initializers.values())
    tensors = [tensor for tensor in values if isinstance(tensor, ir.ExternalTensor)]
    quantised = any(tensor.dtype.itemsize <= 1 and tensor.dtype != ir.DataType.BOOL for tensor in tensors)
    large = sum(tensor.nbytes for tensor in tensors) > _PACKED_BYTES
    unpacked = not quantised and (large or not pack)
    settings = {"session.disable_prepacking": "1"} if unpacked else {}
    level: graphs.Optimization = "all" if optimize else "none"

    def refusal(reason: str) -> BaseModelError:
        fix = "open the base itself with ONNX Runtime; if that fails too, export it again"
        return BaseModelError("ONNX Runtime cannot open the graph", where=folder, found=reason, fix=fix)

    with parsing(refusal):  # a model of 2 GiB and more has no bytes
        data = ir.to_proto(model).SerializeToString()
    try:
        return graphs.open_session(data, optimization=level, where=folder, settings=settings, leave_out=leave_out)
    except FormatError as error:
        raise refusal(str(error.found)) from error


def try_session(session: ort.InferenceSession, arrays: Mapping[str, np.ndarray]) -> graphs.Arrays:
    """Run a graph of others on small inputs, as `run_session` does; `BaseModelError` if it does not come to an end."""
    options = ort.RunOptions()
    timer = Timer(_MOST_SECONDS, setattr, (options, "terminate", True))
    timer.daemon = True
    timer.start()
    try:
        return graphs.run_session(session, arrays, options=options)
    except RequestError as error:
        if not options.terminate:
            raise
        raise BaseModelError(
            f"did not come to an end in {_MOST_SECONDS:.0f} seconds",
            found=f"inputs of {', '.join(f'`{name}` {list(array.shape)}' for name, array in arrays.items())}",
            expected="a graph that computes such small inputs at once",
            fix="look for a `Loop` without an end in it",
        ) from error
    finally:
        timer.cancel()
