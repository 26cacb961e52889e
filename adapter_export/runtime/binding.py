"""Calls whose tensors stay where the graph runs, by ONNX Runtime's IO binding.

Native adapters (`RunOptions.add_active_adapter`) are ignored there without an error: adapters are bound as the inputs
that they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnxruntime as ort

from adapter_export.runtime.graphs import incomputable
from adapter_export.runtime.providers import FAILURES, Provider


def run_bound(
    session: ort.InferenceSession, names: Sequence[str], feeds: Mapping[str, ort.OrtValue], provider: Provider
) -> dict[str, ort.OrtValue]:
    """Compute outputs that stay on the device; what is fed from there is not copied.

    Raises:
        RequestError: ONNX Runtime cannot compute these inputs.
    """
    binding = session.io_binding()
    try:
        for name, value in feeds.items():
            binding.bind_ortvalue_input(name, value)
        for name in names:
            binding.bind_output(name, provider, 0)
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()
    except FAILURES as error:
        raise incomputable(error) from error
    return dict(zip(names, binding.get_outputs(), strict=True))
