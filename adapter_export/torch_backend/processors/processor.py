"""The base class of libraries whose processors make inputs of files."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import numpy as np


class ProcessorLibrary(ABC):
    """The processors of one modality, for training and as the reference of the steps that clients do."""

    @abstractmethod
    def load(self, folder: Path) -> Any:
        """Return the processor that a folder describes; its library raises what it wants."""

    def rate(self, processor: Any) -> int | None:  # noqa: ARG002 — for files with a sampling rate
        """Return the sampling rate of a processor; `None` if files have none."""
        return None

    def run(self, processor: Any, contents: np.ndarray, tensors: str) -> Any:
        """Return the inputs by name, with an axis of the batch.

        Args:
            processor: as `load` returned it.
            contents: of one file.
            tensors: `np` for arrays, `pt` for torch tensors.
        """
        return processor(contents, return_tensors=tensors)
