"""Feature extractors of transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import transformers

from adapter_export.torch_backend.processors.processor import ProcessorLibrary


class AudioLibrary(ProcessorLibrary):
    """Feature extractors for samples of one rate."""

    def load(self, folder: Path) -> Any:
        """Return the feature extractor of a folder."""
        auto: Any = transformers.AutoFeatureExtractor
        return auto.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)

    def rate(self, processor: Any) -> int:
        """Return its sampling rate in Hz."""
        return int(processor.sampling_rate)

    def run(self, processor: Any, contents: np.ndarray, tensors: str) -> Any:
        """Return the inputs made from samples."""
        return processor(contents, return_tensors=tensors, sampling_rate=self.rate(processor))


LIBRARY = AudioLibrary()
