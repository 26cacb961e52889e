"""Torch archives taken apart and put together again, whole or tampered with."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

PROGRAM = "models/model.json"
WEIGHTS = "data/weights/model_weights_config.json"
CONSTANTS = "data/constants/model_constants_config.json"
SAMPLE_INPUTS = "data/sample_inputs/model.pt"

Entries = dict[str, bytes]


class Small(nn.Module):
    """Has a parameter, a buffer, a constant and a dynamic batch."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.register_buffer("shift", torch.randn(4))

    def forward(self, x: Tensor) -> Tensor:
        """Compute [batch, 4] from [batch, 4]."""
        return self.linear(x) + self.shift + torch.tensor([1.0, 2.0, 3.0, 4.0])


def save_plainly(path: Path) -> None:
    """Write an archive as someone does who does not know this package."""
    torch.manual_seed(0)
    shapes = {"x": {0: torch.export.Dim.DYNAMIC}}
    program = torch.export.export(Small().eval(), (torch.randn(3, 4),), dynamic_shapes=shapes)
    torch.export.save(program, path)


def read_entries(path: Path) -> Entries:
    """The entries of an archive by their names below the root."""
    with zipfile.ZipFile(path) as archive:
        return {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}


def write_entries(path: Path, entries: Entries) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in entries.items():
            archive.writestr(f"archive/{name}", data)


def edit(entries: Entries, name: str, change: Callable[[Any], object]) -> None:
    """Change the JSON of an entry in place."""
    document = json.loads(entries[name])
    change(document)
    entries[name] = json.dumps(document).encode()


def pickle_that_makes(marker: Path) -> bytes:
    """A pickle that makes a folder when it is read, as `torch.load(weights_only=False)` reads it."""
    pickled = f"cos\nmkdir\n(S'{marker}'\ntR.".encode()
    # nothing is read behind the full stop; whole numbers of float32 could be a tensor's bytes, too
    return pickled + b" " * (-len(pickled) % 4)
