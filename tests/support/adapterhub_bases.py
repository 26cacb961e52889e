"""The fixtures that AdapterHub's library wrote, and the bases that they were made for, in every form.

`tests/fixtures/adapterhub/make.py` made them and says what lies there.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from float64_bases import Base
from safetensors.numpy import load_file

from adapter_export.cli.bases import as_onnx
from adapter_export.cli.sources import TorchSource, open_source
from adapter_export.onnx.base import OnnxBase
from adapter_export.sites.site import SiteMap
from adapter_export.torch.runner import TorchRunner

FIXTURES = Path(__file__).parents[1] / "fixtures" / "adapterhub"


@dataclass(frozen=True)
class Made:
    """A base in every form, each made when it is first asked for."""

    folder: Path
    scratch: Path

    @cached_property
    def inputs(self) -> dict[str, np.ndarray]:
        """Token types are left out of the files: they are zero."""
        given = load_file(self.folder / "inputs.safetensors")
        names = [record.name for record in self.source.base.inputs]
        return {name: given.get(name, np.zeros_like(given[next(iter(given))])) for name in names}

    @cached_property
    def source(self) -> TorchSource:
        source = open_source(self.folder / "model")
        assert isinstance(source, TorchSource)
        return source

    @cached_property
    def sites(self) -> SiteMap:
        return self.source.sites()

    @cached_property
    def torch(self) -> TorchRunner:
        return TorchRunner(self.source.base, sites=self.sites)

    @cached_property
    def onnx(self) -> OnnxBase:
        return as_onnx(self.source, self.scratch, lambda _: None)

    @cached_property
    def float64(self) -> Base:
        return Base.read(self.folder / "model")
