"""Image processors of transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import transformers

from adapter_export.torch_backend.processors.processor import ProcessorLibrary


class ImageLibrary(ProcessorLibrary):
    """Image processors, which go through Pillow."""

    def load(self, folder: Path) -> Any:
        """Return the image processor of a folder."""
        auto: Any = transformers.AutoImageProcessor
        return auto.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False, backend="pil")


LIBRARY = ImageLibrary()
