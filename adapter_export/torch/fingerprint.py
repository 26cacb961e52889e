"""What tells one base from another: its weights."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.export import ExportedProgram


def fingerprint(program: ExportedProgram) -> str:
    """The sha256 over the sorted facts of all parameters and buffers, as `sha256:<hex>`.

    A fact is a line `<name> <type> <shape> <sha256 of the bytes>`, such as `encoder.bias float32 [384] 0f3a…`, with the
    bytes in row-major order and little-endian. So it survives saving and loading, and changes with any bit of a weight.
    """
    digest = hashlib.sha256()
    for fact in sorted(_facts(program)):
        digest.update(fact.encode())
    return f"sha256:{digest.hexdigest()}"


def _facts(program: ExportedProgram) -> Iterator[str]:
    for tensors in (program.named_parameters(), program.named_buffers()):
        for name, tensor in tensors:
            dtype = str(tensor.dtype).removeprefix("torch.")
            yield f"{name} {dtype} {list(tensor.shape)} {hashlib.sha256(_bytes(tensor)).hexdigest()}\n"


def _bytes(tensor: Tensor) -> memoryview:
    """The numbers of a tensor without a copy, where they lie in one piece."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")
