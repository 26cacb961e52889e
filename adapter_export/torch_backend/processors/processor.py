"""Base class of libraries whose processors make inputs from files."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import numpy as np


class ProcessorLibrary(ABC):
    """Processors of one modality, for training and as the reference of the clients' steps."""

    @abstractmethod
    def load(self, folder: Path) -> Any:
        """Return the processor that a folder describes; may raise any error of its library."""

    def rate(self, processor: Any) -> int | None:  # noqa: ARG002 — for files with a sampling rate
        """Return the sampling rate of a processor; `None` if files have none."""
        return None

    def run(self, processor: Any, contents: np.ndarray, tensors: str) -> Any:
        """Return the inputs by name, with a batch axis.

        Args:
            processor: a result of `load`.
            contents: contents of one file.
            tensors: `np` for arrays, `pt` for torch tensors.
        """
        return processor(contents, return_tensors=tensors)
