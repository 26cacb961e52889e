"""Training on the real base: the loss falls, the base is unchanged, the start is close to it."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from adapter_export.graph.heads import make_head
from adapter_export.graph.initialise import HEAD_STD, SCHEMES, SMALL_STD
from adapter_export.graph.kinds import KINDS
from adapter_export.sites.discover import discover
from adapter_export.text import Tokenizer
from adapter_export.torch_backend.attach import AdaptedModel, attach
from adapter_export.torch_backend.base.torch_base import TorchBase, fingerprint, load_base
from adapter_export.torch_backend.fx_view import flow_graph
from adapter_export.training.loop.data import TextExamples, TrainingData
from adapter_export.training.loop.init_adapter import init_adapter, relative_change
from adapter_export.training.loop.settings import LoopSpec
from adapter_export.training.loop.train_loop import train

QUESTIONS = (
    "Who wrote Hamlet ?",
    "Who was the first man on the moon ?",
    "Who invented the telephone ?",
    "What president served two terms in the twenties ?",
    "Who painted the Mona Lisa ?",
    "Who is the author of the play Faust ?",
    "Who discovered penicillin ?",
    "What actor played the king ?",
)
PLACES = (
    "Where is the highest mountain ?",
    "What country borders France in the south ?",
    "What is the capital of Peru ?",
    "Where do penguins live ?",
    "Which city hosted the games of 1936 ?",
    "Where was Mozart born ?",
    "What river flows through Cairo ?",
    "What state has the most lakes ?",
)

WEIGHT_STDS = {"small_normal": 0.88 * SMALL_STD, "normal": HEAD_STD, "zero_up": 0, "kaiming_zero_up": 0}
"""Factors of the up-projection, and of the down-projection if it is not zero; truncation at 2 deviations gives 0.88."""


@pytest.fixture(scope="module")
def base(minilm_archive: Path) -> TorchBase:
    return load_base(minilm_archive)


@pytest.fixture(scope="module")
def examples(base: TorchBase) -> TextExamples:
    assert base.tokenizer is not None
    tokenizer = Tokenizer.from_json(base.tokenizer, 64)
    classes = np.repeat(np.arange(2), len(PLACES))
    return TextExamples.of([*QUESTIONS, *PLACES], classes, tokenizer, tuple(one.name for one in base.inputs))


def adapted(base: TorchBase, kind: str, scheme: str) -> AdaptedModel:
    sites = discover(flow_graph(base.flat))
    head = make_head(width=sites.width, labels=("person", "place"))
    made = init_adapter(KINDS[kind](None), sites, name="a", base=base.fingerprint, scheme=scheme, head=head)
    return attach(base, made, sites=sites)


@pytest.mark.parametrize("scheme", sorted(SCHEMES))
def test_every_scheme_starts_near_the_base(base, examples, scheme: str) -> None:
    """One adapter adds U·gelu(D·h), where gelu(z) is about z/2 for small z: std²·√(d·b)/2 of the norm of h.

    The twelve are independent, so together they add √12 times that, if h is not larger than the stream that it is added
    to and later layers pass a change on unchanged.
    """
    model = adapted(base, "houlsby", scheme)
    bound = WEIGHT_STDS[scheme] ** 2 * math.sqrt(384 * 64) / 2 * math.sqrt(12)
    change = relative_change(model, next(examples.calls(np.arange(16), pads=True)).inputs)
    assert bound / 4 <= change <= bound
    assert (change == 0) == ("zero_up" in scheme)


def test_a_few_steps_on_real_questions_reduce_the_loss(base, examples) -> None:
    model = adapted(base, "houlsby", "small_normal")
    data = TrainingData(examples, examples)
    result = train(model, data, LoopSpec(epochs=4, batch_size=8, learning_rate=2e-3))
    losses = [record.training_loss for record in result.history]
    assert losses[-1] < 0.5 * losses[0]
    assert result.best.validation.metrics["accuracy"] > 0.9
    assert fingerprint(base.program) == base.fingerprint
