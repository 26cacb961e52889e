"""Makes a base and adapters with AdapterHub's library, in a process of its own.

    PYTHONPATH=FOLDER python tests/peers/adapterhub_makes.py NAME PLACE

PLACE gets the base as `model`, `inputs.safetensors`, `plain.safetensors` with the base's hidden states, and for each
method, by its number, a folder with the adapter, and `hidden` or the library's `error` in a file of safetensors.
"""

from __future__ import annotations

import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import adapters
import torch
import transformers as hf
from adapterhub_configurations import BASES, FRAMES, MELS, METHODS, SIDE, WORDS, Hub, Kind, Method
from safetensors.torch import save_file
from torch import Tensor

STD, FIRST, LENGTHS = 0.2, 4, (7, 4, 2)
"""Standard deviation of weights, the first word that is not special, and the lengths of the rows."""

NAME = "adapter"


def make_base(base: Hub, folder: Path) -> Any:
    """Save a base with random weights, and open it with the library."""
    torch.manual_seed(0)
    config = getattr(hf, base.config)(**base.options)
    model = getattr(hf, base.model)(config) if base.model else hf.AutoModel.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            is_scale = parameter.dim() == 1 and bool((parameter == 1).all())
            parameter.copy_(STD * torch.randn_like(parameter) + float(is_scale))
    model.save_pretrained(folder)
    if not base.model:
        return adapters.AutoAdapterModel.from_pretrained(folder).eval()
    opened = getattr(hf, base.model).from_pretrained(folder).eval()
    adapters.init(opened)
    return opened


def inputs_of(kind: Kind) -> dict[str, Tensor]:
    """Return rows of several lengths, padded at the right, or images, or sounds."""
    torch.manual_seed(1)
    rows, written = len(LENGTHS), torch.randint(FIRST, WORDS, (len(LENGTHS), 3))
    if kind == "image":
        return {"pixel_values": torch.randn(rows, 3, SIDE, SIDE)}
    if kind == "speech":
        return {"input_features": torch.randn(rows, MELS, FRAMES), "decoder_input_ids": written}
    mask = (torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]).long()
    ids = torch.where(mask == 1, torch.randint(FIRST, WORDS, mask.shape), 0)
    texts = {"input_ids": ids, "attention_mask": mask}
    return texts | {"decoder_input_ids": written} if kind == "translation" else texts


def hidden_of(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    """Return the first output of the model below its heads."""
    outputs: list[Tensor] = []
    handle = model.base_model.register_forward_hook(lambda _module, _inputs, output: outputs.append(output[0]))
    with torch.no_grad():
        model.eval()(**inputs)
    handle.remove()
    return outputs[0].contiguous()


def config_of(method: Method) -> Any:
    """Return the library's config of a method."""
    if method.members:
        return adapters.ConfigUnion(*map(config_of, method.members))
    return getattr(adapters.configuration, method.config)(**method.options)


def make(model: Any, method: Method, inputs: dict[str, Tensor], folder: Path) -> Tensor:
    """Save an adapter of a model with random weights; return the hidden states of a model that has loaded it."""
    trained, loaded = deepcopy(model), deepcopy(model)
    trained.add_adapter(NAME, config=config_of(method))
    trained.train_adapter(NAME)
    with torch.no_grad():
        for parameter in trained.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=STD)
    trained.save_adapter(str(folder), NAME, with_head=False)
    report: dict[str, Any] = {}
    loaded.load_adapter(str(folder), with_head=False, set_active=True, loading_info=report)
    lost = [*report.get("missing_keys", ()), *report.get("unexpected_keys", ())]
    assert not lost, f"the library loses tensors: {lost}"
    hidden = hidden_of(loaded, inputs)
    assert torch.allclose(hidden_of(trained, inputs), hidden, atol=1e-4), "a loaded adapter computes something else"
    return hidden


def main(name: str, place: Path) -> None:
    base = BASES[name]
    model, inputs = make_base(base, place / "model"), inputs_of(base.kind)
    save_file(inputs, place / "inputs.safetensors")
    save_file({"hidden": hidden_of(model, inputs)}, place / "plain.safetensors")
    for number, method in enumerate(METHODS.values()):
        torch.manual_seed(number)
        try:
            result = {"hidden": make(model, method, inputs, place / f"{number}")}
        except Exception as error:  # the library's errors have many types
            words = f"{type(error).__name__}: {error}".encode()
            result = {"error": torch.frombuffer(bytearray(words), dtype=torch.uint8)}
        save_file(result, place / f"{number}.safetensors")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1], Path(sys.argv[2]))
