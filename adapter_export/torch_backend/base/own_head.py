"""A base's own head: what the model that it comes from computes of the final hidden state, proved to be that."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from adapter_export.errors import InputError
from adapter_export.graph.adapter import HEAD, OWN_HEAD, Adapter, Head
from adapter_export.graph.tasks import CLASSES, Task
from adapter_export.numerics.budget import budget, extent
from adapter_export.numerics.sample_inputs import input_cases
from adapter_export.torch_backend.attach import attach
from adapter_export.torch_backend.base.base import TorchBase, base_of
from adapter_export.torch_backend.base.capture import settled
from adapter_export.torch_backend.base.inputs import Examples
from adapter_export.torch_backend.base.quiet import LIBRARY_ERRORS, first_line
from adapter_export.torch_backend.base.traced_head import TracedHead, trace_head
from adapter_export.torch_backend.view import flow_graph

_MOST_TOKENS = 16
"""The longest input that a head is proved with: it computes the same for every token, or for one of them."""

_LISTED = 20
"""How many weights a note names."""


@dataclass(frozen=True)
class OwnHead:
    """The head of a whole model, with what that model computed of some inputs; or why there is none.

    `maker` is what the head comes from, such as a class of transformers; `reason` says why it is left out, `notes` what
    was decided where nothing says it.
    """

    maker: str
    head: Head | None = None
    weights: TracedHead | None = None
    reason: str = ""
    notes: tuple[str, ...] = ()
    cases: Sequence[Mapping[str, Tensor]] = field(default=(), repr=False)
    results: Sequence[Tensor] = field(default=(), repr=False)

    def of(self, base: TorchBase, *, model: str, unused: Sequence[str]) -> tuple[Adapter | None, tuple[str, ...]]:
        """The head as an adapter of a base, if it computes with it what the whole model computed; and notes.

        Args:
            base: the captured base.
            model: the class of the base.
            unused: the weights of the folder that the base has no place for.
        """
        reason = self.reason
        if self.head is not None and self.weights is not None:
            tensors = {f"{HEAD}.{name}": tensor for name, tensor in self.weights.weights.items()}
            training = {"origin": {"library": "transformers", "model": self.maker}}
            adapter = Adapter(OWN_HEAD, "own_head", base.fingerprint, {}, {}, tensors, self.head, training)
            reason = self._deviates(base, adapter)
            if not reason:
                return adapter, tuple(f"the head of `{self.maker}`: {note}" for note in self.notes)
        bare = self.maker in ("", model) or (self.maker.endswith("Model") and "Head" not in self.maker)
        if bare and not unused:
            return None, ()
        named = ", ".join(f"`{name}`" for name in unused[:_LISTED])
        more = f" and {len(unused) - _LISTED} more" if len(unused) > _LISTED else ""
        weights = f", with the weights {named}{more}" if unused else ""
        what = f"the head of `{self.maker}`" if self.maker else "what stands behind the model"
        return None, (f"{what} is left out{weights}: {reason or 'nothing says what it is for'}",)

    def _deviates(self, base: TorchBase, adapter: Adapter) -> str:
        """In what way the base with the head is not the whole model; empty if it is, within rounding."""
        model = attach(base, adapter)
        size = extent(flow_graph(base.flat))
        for inputs, expected in zip(self.cases, self.results, strict=True):
            if set(inputs) != {record.name for record in base.inputs}:
                return f"the model with it takes other inputs than without it: {', '.join(sorted(inputs))}"
            with torch.inference_mode():
                found = model.head(**inputs)
            if found.shape != expected.shape:
                return f"it gives {list(expected.shape)} numbers, and {list(found.shape)} behind the base"
            scale = float(expected.abs().max())
            allowed = budget("float32", inner=size.inner, depth=size.depth, scale=scale)
            distance = float((found - expected).abs().max())
            if not distance <= allowed.absolute:
                return f"behind the base it computes something else (by {distance:.2g}, where {scale:.3g} is the scale)"
        return ""


def own_head(
    whole: nn.Module,
    maker: str,
    outputs: Sequence[str],
    task_of: Callable[[int], tuple[Task | None, Sequence[str]]],
    examples: Examples | None,
) -> OwnHead:
    """The head of a whole model, whose results are `outputs`; several are the columns of one.

    `task_of` gives the task of a head, and notes, from the number of its classes; `examples` are inputs of the model.
    Nothing is raised for a head that cannot be taken: the reason is in the result.
    """
    try:
        if examples is None:
            return OwnHead(maker, reason="the model takes inputs of its own")
        program = base_of(whole, *examples)
        traced = trace_head(program, outputs, vectors=outputs == [EMBEDDING])
        task, notes = task_of(traced.widths.get(CLASSES, 0))
        head = Head(traced.graph, traced.widths, task)
        longest = min(program.max_tokens or _MOST_TOKENS, _MOST_TOKENS)
        drawn = input_cases(program.inputs, seed=0, lengths=program.lengths, max_tokens=longest)
        cases = [{name: torch.from_numpy(array) for name, array in case.arrays.items()} for case in drawn]
        with torch.inference_mode(), settled(whole):
            computed = [whole(**inputs) for inputs in cases]
        columns = [[values[name] for name in outputs] for values in computed]
        results = [torch.stack(one, -1) if len(one) > 1 else one[0] for one in columns]
    except InputError as error:  # what to do about it is of no use: the model is captured without it
        return OwnHead(maker, reason=error.what + (f"; found {error.found}" if error.found else ""))
    except LIBRARY_ERRORS as error:  # such as a head that wants a token of its own in every text
        return OwnHead(maker, reason=f"the whole model cannot compute an example; found {first_line(error)}")
    return OwnHead(maker, head, traced, notes=tuple(notes), cases=cases, results=results)


EMBEDDING = "sentence_embedding"
"""The result of a model that gives vectors, as sentence-transformers calls it."""


def with_tokenizer(task: Task | None, digest: str | None, truncation: object) -> Task | None:
    """The task with what is known of the tokenizer: its digest, and the side on which it cuts."""
    if task is None:
        return None
    return dataclasses.replace(task, tokenizer=digest, truncation="left" if truncation == "left" else "right")
