"""Square matrices, and bottlenecks as wide as the model: results equal those of the library."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from adapterhub_bases import FIXTURES, Made
from safetensors.numpy import load_file
from slotted import Slotted
from tiers import some_quick

from adapter_export.bases.base_view import BaseView, ImportRequest
from adapter_export.errors import AdapterError
from adapter_export.numerics.base_layers import layer_finder
from adapter_export.plugins.formats.importers import adapterhub

SINGLE = 2e-5
CASES = sorted(
    str(path.parent.relative_to(FIXTURES))
    for base in ("bert_square", "gpt2_square")
    for path in (FIXTURES / base).glob("*/adapter_config.json")
)


@pytest.mark.parametrize("case", some_quick(CASES, "gpt2_square/dora", "bert_square/vera"))
def test_torch_and_onnxruntime_match_adapterhub_at_square_layers(case: str, made: Callable[[str], Made]) -> None:
    base, expected = made(case.partition("/")[0]), load_file(FIXTURES / case / "expected.safetensors")["hidden"]
    view = BaseView(base.source.fingerprint, base.sites, layer_at=layer_finder(base.source))
    adapter = adapterhub.import_adapterhub(FIXTURES / case, view, ImportRequest("a")).adapter
    allowed = SINGLE * max(1.0, float(np.abs(expected).max()))
    for found in (base.torch.run(base.inputs, adapter), Slotted(base.onnx, [adapter]).run(base.inputs, adapter)):
        np.testing.assert_allclose(found["last_hidden_state"], expected, rtol=0, atol=allowed)


def test_a_graph_does_not_show_the_layout_that_dora_depends_on(made: Callable[[str], Made]) -> None:
    """The library adds `B A` [out, in] to the stored weight, [in, out] in `Conv1D`; exporters transpose both."""
    base = made("gpt2_square")
    view = BaseView(base.onnx.fingerprint, base.onnx.sites, layer_at=layer_finder(base.onnx))
    with pytest.raises(AdapterError, match="square weight"):
        adapterhub.import_adapterhub(FIXTURES / "gpt2_square/dora", view, ImportRequest("a"))
