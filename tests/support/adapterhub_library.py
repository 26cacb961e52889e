"""Runs AdapterHub's library: a process of its own, as it needs an older transformers than the other tests.

    PYTHONPATH=FOLDER python tests/support/adapterhub_library.py CASES.json

`CASES.json` is a list of objects: `base`, a Hugging Face folder; `adapter`, a folder as the library saves it; `inputs`,
a file of safetensors; and `output`, the file to write. It gets `hidden` and, with a head, `logits`, or `error`, the
error of the library as characters. A tensor that the library does not find, or finds no place for, is an error.
"""

from __future__ import annotations

import json
import sys
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import adapters
import torch
from safetensors.torch import load_file, save_file


@cache
def opened(base: str) -> Any:
    """The base without adapters, which each case copies."""
    return adapters.AutoAdapterModel.from_pretrained(base).eval()


REFUSALS = (AssertionError, AttributeError, ImportError, LookupError, RuntimeError, TypeError, ValueError)
"""Errors by which the library refuses a file, and that of `compute` for lost tensors. They are results."""


def compute(case: dict[str, str]) -> dict[str, torch.Tensor]:
    """Load an adapter with the library, and run it."""
    model = deepcopy(opened(case["base"]))
    loaded: dict[str, Any] = {}
    name = model.load_adapter(case["adapter"], set_active=True, loading_info=loaded, use_safetensors=True)
    lost = [*loaded.get("missing_keys", ()), *loaded.get("unexpected_keys", ())]
    assert not lost, f"lost tensors: {lost}"
    inputs = load_file(case["inputs"])
    hidden: list[torch.Tensor] = []
    model.base_model.register_forward_hook(lambda _module, _given, output: hidden.append(output[0]))
    with torch.no_grad():
        found = model.eval()(**inputs, **({"head": name} if name in model.heads else {}))
    made = {"hidden": hidden[0]}
    if name in model.heads:
        made["logits"] = found["logits"] if "logits" in found else torch.stack([*found.values()][:2], -1)
    return made


def main(cases: list[dict[str, str]]) -> None:
    for case in cases:
        try:
            made = compute(case)
        except REFUSALS as error:
            words = f"{type(error).__name__}: {error}".encode()
            made = {"error": torch.frombuffer(bytearray(words), dtype=torch.uint8)}
        save_file({key: value.contiguous() for key, value in made.items()}, case["output"])


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(json.loads(Path(sys.argv[1]).read_text()))
