"""PEFT's own test matrix: each configuration on each base, through a bundle, beside PEFT's forward."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
import transformers as hf
from bundled import Peers, real, request
from outcomes import not_made
from peft_configurations import PEFT_BASES, WORDS, Configuration, PeftBase, configurations

import adapter_export as ae

STD, NEAR_STD = 0.2, 0.05
"""Standard deviation of trained tensors, and of changes to those that must stay near their initialization."""

NEAR = frozenset(("OSFConfig",))
FIRST, LENGTHS = 4, (7, 4, 1)
"""The first word that is not special, and the lengths of the rows."""

LABELS = ("a", "b", "c")


def run(name: str, folder: Path) -> dict[str, str]:
    """Return the outcome of each configuration on a base, by its name."""
    base = PEFT_BASES[name]
    library = Library(getattr(hf, name), base, folder)
    outcomes, answers = dict[str, str](), dict[str, tuple[Path, np.ndarray]]()
    chosen = configurations(base.task)
    for number, configuration in enumerate(chosen):
        try:
            answers[configuration.name] = library.make(configuration, folder / f"{number}")
        except Exception as error:  # PEFT's errors have many types
            outcomes[configuration.name] = not_made(error, folder)
    options: dict[str, Any] = {"labels": LABELS} if base.task == "SEQ_CLS" else {}
    load = partial(ae.import_peft, dense=True, **options)
    outcomes |= Peers(library.base, library.inputs, library.plain, load, folder).outcomes(answers)
    return {configuration.name: outcomes[configuration.name] for configuration in chosen}


class Library:
    """A base with random weights, on which PEFT makes adapters.

    Args:
        model: its class.
        base: its task and config.
        folder: an empty folder for it.

    Attributes:
        base: the captured base.
        inputs: rows of several lengths, padded at the right.
        plain: answer without an adapter.
    """

    def __init__(self, model: Any, base: PeftBase, folder: Path) -> None:
        self._model, self._task, self._source = model, base.task, folder / "model"
        torch.manual_seed(0)
        model = model(getattr(hf, base.config)(**base.options))
        with torch.no_grad():
            for parameter in model.parameters():
                is_scale = parameter.dim() == 1 and bool((parameter == 1).all())
                parameter.copy_(STD * torch.randn_like(parameter) + float(is_scale))
        model.save_pretrained(self._source)
        bare = base.task in ("FEATURE_EXTRACTION", "SEQ_CLS")
        self.base = ae.capture(self._source, folder / "base.pt", bare=bare)
        self.inputs = _rows(self.base)
        self.plain = self._answer(self._opened())

    def make(self, configuration: Configuration, place: Path) -> tuple[Path, np.ndarray]:
        """Save an adapter with PEFT; return its folder, and the answer once PEFT has loaded it."""
        torch.manual_seed(0)
        config = getattr(peft, configuration.config)(task_type=self._task, **configuration.options)
        model = peft.get_peft_model(self._opened(), config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad and configuration.config in NEAR:
                    parameter.add_(NEAR_STD * torch.randn_like(parameter))
                elif parameter.requires_grad:
                    parameter.normal_(std=STD)
        model.save_pretrained(place)
        return place, self._answer(peft.PeftModel.from_pretrained(self._opened(), place).eval())

    def _opened(self) -> Any:
        return self._model.from_pretrained(self._source).eval()

    def _answer(self, model: Any) -> np.ndarray:
        """Return the values of an answer of transformers that are not padding."""
        # an adapter's cache, such as a prefix, belongs to PEFT
        arrays = {name: array for name, array in self.inputs.items() if array.size}
        with torch.no_grad():
            output = model(**{name: torch.from_numpy(array) for name, array in arrays.items()})
        answer = output.logits if "logits" in output else output.last_hidden_state
        return real(answer.numpy(), self.inputs)


def _rows(base: ae.Base) -> dict[str, np.ndarray]:
    """Return rows of several lengths, padded at the right, and an empty cache."""
    random, longest = np.random.default_rng(0), max(LENGTHS)
    mask = (np.arange(longest) < np.array(LENGTHS)[:, None]).astype(np.int64)
    ids = np.where(mask == 1, random.integers(FIRST, WORDS, mask.shape), 0)
    written = random.integers(FIRST, WORDS, (len(LENGTHS), 3))
    arrays = {"input_ids": ids, "attention_mask": mask, "decoder_input_ids": written}
    return request(base, arrays)
