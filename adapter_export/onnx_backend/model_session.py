"""Sessions on models in memory whose weights are in a folder."""

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
"""Maximum bytes of weights that ONNX Runtime may prepack (copy into its kernels' layout)."""

_MOST_SECONDS = 60.0
"""Maximum seconds that an untrusted graph may take for inputs of a few tokens."""


def open_session(
    model: ir.Model, folder: Path, *, optimize: bool = True, pack: bool = True, leave_out: Sequence[str] = ()
) -> ort.InferenceSession:
    """Open a model on the CPU.

    Large weights are memory-mapped, so the operating system can evict them. With `optimize`, ONNX Runtime may rewrite
    the graph, except with the optimizers in `leave_out`. With `pack`, it may prepack weights, which pays off over many
    runs; quantized weights are always prepacked, because their kernels compute different results without it.

    Raises:
        BaseModelError: ONNX Runtime rejects the model.
    """
    values = (value.const_value for value in model.graph.initializers.values())
    tensors = [tensor for tensor in values if isinstance(tensor, ir.ExternalTensor)]
    quantised = any(tensor.dtype.itemsize <= 1 and tensor.dtype != ir.DataType.BOOL for tensor in tensors)
    large = sum(tensor.nbytes for tensor in tensors) > _PACKED_BYTES
    unpacked = not quantised and (large or not pack)
    settings = {"session.disable_prepacking": "1"} if unpacked else {}
    level: graphs.Optimization = "all" if optimize else "none"

    def refusal(reason: str) -> BaseModelError:
        fix = "try to open the base in ONNX Runtime; if that fails, too, export it again"
        return BaseModelError("ONNX Runtime cannot open the graph", where=folder, found=reason, fix=fix)

    with parsing(refusal):  # a model of 2 GiB or more cannot be serialized
        data = ir.to_proto(model).SerializeToString()
    try:
        return graphs.open_session(data, optimization=level, where=folder, settings=settings, leave_out=leave_out)
    except FormatError as error:
        raise refusal(str(error.found)) from error


def try_session(session: ort.InferenceSession, arrays: Mapping[str, np.ndarray]) -> graphs.Arrays:
    """Run an untrusted graph on small inputs, as `run_session` does; `BaseModelError` after a timeout."""
    options = ort.RunOptions()
    timer = Timer(_MOST_SECONDS, setattr, (options, "terminate", True))
    # a waiting timer must not keep the process alive
    timer.daemon = True
    timer.start()
    try:
        return graphs.run_session(session, arrays, options=options)
    except RequestError as error:
        if not options.terminate:
            raise
        raise BaseModelError(
            f"did not finish in {_MOST_SECONDS:.0f} seconds",
            found=f"inputs of {', '.join(f'`{name}` {list(array.shape)}' for name, array in arrays.items())}",
            expected="a graph that runs on such small inputs quickly",
            fix="check it for an endless `Loop`",
        ) from error
    finally:
        timer.cancel()
