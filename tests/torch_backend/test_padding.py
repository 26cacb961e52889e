"""If padding changes results, rows are trained and scored without it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from heard import Interrupt
from once import once
from small_encoder import MAX_TOKENS, OTHER, tokenizer_json
from small_models import small
from small_task import make_adapter, review_data, sites_of, with_random_weights

from adapter_export.graph.kinds import BottleneckOptions
from adapter_export.text import Pair, Tokenizer
from adapter_export.torch_backend.attach import AdaptedModel, attach
from adapter_export.torch_backend.base.torch_base import TorchBase, load_base, save_base
from adapter_export.training.loop.cache import HiddenCache, results_of
from adapter_export.training.loop.data import TextExamples, TrainingData
from adapter_export.training.loop.distil_loop import Teacher
from adapter_export.training.loop.settings import DistillationLoss, LoopSpec
from adapter_export.training.loop.train_loop import answer_examples, train

QUICK = LoopSpec(epochs=2, batch_size=8, learning_rate=0.01)
GATED = BottleneckOptions("gelu", gate=True)


class Unmasked(torch.nn.Module):
    """A model without a mask."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = self.model(input_ids=input_ids)[0]
        return hidden


@pytest.fixture(scope="session")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with `convolution.pt`, whose tokens read their neighbours regardless of the mask, and `unmasked.pt`."""

    def make(folder: Path) -> None:
        ids = torch.ones(2, 5, dtype=torch.long)
        for name, module, example in (
            ("convolution", small("ConvBert"), {"input_ids": ids, "attention_mask": ids}),
            ("unmasked", Unmasked(small("Bert")), {"input_ids": ids}),
        ):
            save_base(module, example, folder / f"{name}.pt", tokenizer=tokenizer_json(), max_tokens=MAX_TOKENS)

    return once(tmp_path_factory, "padding", make)


@pytest.fixture(scope="session")
def convolution(archives: Path) -> TorchBase:
    return load_base(archives / "convolution.pt")


@pytest.fixture(scope="session")
def unmasked(archives: Path) -> TorchBase:
    return load_base(archives / "unmasked.pt")


def adapted(base: TorchBase, options: BottleneckOptions | None = None) -> AdaptedModel:
    return attach(base, with_random_weights(make_adapter(base, options=options)))


def alone(model: AdaptedModel, examples: TextExamples, row: int) -> torch.Tensor:
    """Return the model's result for a single text, without padding."""
    encoding = examples.tokenizer.rows([examples.texts[row]])[0].encoding
    known = {"input_ids": encoding.ids, "attention_mask": encoding.attention_mask}
    with torch.inference_mode():
        return model.head(**{name: torch.tensor([known[name]]) for name in examples.names})[0]


class TestWhatIsFound:
    def test_a_mask_hides_padding_from_attention(self, base: TorchBase) -> None:
        assert adapted(base).pads

    def test_effect_of_padding_on_a_gate_is_detected(self, base: TorchBase) -> None:
        assert not attach(base, make_adapter(base, options=GATED)).pads  # a new adapter has little effect

    def test_effect_of_padding_on_a_convolution_is_detected(self, convolution: TorchBase) -> None:
        assert not adapted(convolution).pads

    def test_padding_without_a_mask_changes_results(self, unmasked: TorchBase) -> None:
        assert not adapted(unmasked).pads

    def test_padding_probe_leaves_the_model_unchanged(self, base: TorchBase) -> None:
        model = attach(base, make_adapter(base)).train()
        before = {name: tensor.detach().clone() for name, tensor in model.tensors().items()}
        generator = torch.get_rng_state()
        assert model.pads
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.tensors().items())
        assert all(tensor.requires_grad for tensor in model.tensors().values())
        assert model.training
        assert torch.equal(torch.get_rng_state(), generator)

    def test_layers_that_are_left_out_count(self, base: TorchBase) -> None:
        model = adapted(base, GATED)
        model.leave_out([site for site in model.owned if site != "head"])
        assert not model.pads
        assert all(layer.idle for site, layer in model.owned.items() if site != "head")


@pytest.mark.parametrize("name", ["gate", "convolution", "unmasked"])
class TestRows:
    """Rows of a model that counts padding."""

    @pytest.fixture
    def model(self, name: str, base: TorchBase, convolution: TorchBase, unmasked: TorchBase) -> AdaptedModel:
        bases = {"gate": base, "convolution": convolution, "unmasked": unmasked}
        return adapted(bases[name], GATED if name == "gate" else None)

    @pytest.fixture
    def data(self, model: AdaptedModel) -> TrainingData:
        return review_data(model.base)

    def test_rows_are_scored_without_padding(self, model: AdaptedModel, data: TrainingData) -> None:
        examples: Any = data.validation
        assert len(set(examples.lengths.tolist())) > 2
        rows, results, targets = answer_examples(model, examples, QUICK)
        expected = torch.stack([alone(model, examples, row) for row in rows])
        torch.testing.assert_close(results, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
        assert targets.tolist() == examples.answers[rows].tolist()

    def test_rows_are_trained_without_padding(self, model: AdaptedModel, data: TrainingData) -> None:
        """The gradient of a batch equals that of its separate rows, however it is split."""
        examples: Any = data.training
        settings = replace(QUICK, epochs=1, batch_size=60, learning_rate=1e-9, clip=1e9)
        losses = torch.stack([alone(model, examples, row) for row in range(60)])
        expected = torch.nn.functional.cross_entropy(losses, torch.from_numpy(examples.answers)).item()
        for parts in (1, 4):
            result = train(model, data, replace(settings, gradient_accumulation=parts))
            assert result.losses == pytest.approx([expected], rel=1e-5)

    def test_an_interrupted_run_ends_with_the_same_bits(
        self, model: AdaptedModel, data: TrainingData, tmp_path: Path
    ) -> None:
        first = model.to_adapter()
        settings = replace(QUICK, checkpoint_steps=3)
        train(model, data, settings)
        whole = model.to_adapter().weights
        again = attach(model.base, first)
        with pytest.raises(KeyboardInterrupt):
            train(again, data, settings, checkpoints=tmp_path, reporter=Interrupt(5))
        again = attach(model.base, first)
        assert train(again, data, settings, checkpoints=tmp_path).resumed_at == 3
        assert all(np.array_equal(whole[key], tensor) for key, tensor in again.to_adapter().weights.items())


class TestCalls:
    @pytest.fixture
    def examples(self, base: TorchBase) -> TextExamples:
        return review_data(base).training  # type: ignore[return-value]

    def test_rows_share_a_call_where_padding_does_not_count(self, examples: TextExamples) -> None:
        rows = np.arange(20)
        (call,) = examples.calls(rows, pads=True)
        assert call.places.tolist() == rows.tolist()
        assert call.inputs["input_ids"].shape == (20, examples.lengths[rows].max())

    def test_else_only_rows_of_one_length_do(self, examples: TextExamples) -> None:
        rows = np.arange(20)[::-1]
        calls = list(examples.calls(rows, pads=False))
        assert sorted(place for call in calls for place in call.places) == list(range(20))
        assert len(calls) == len(set(examples.lengths[rows]))
        for call in calls:
            assert call.inputs["attention_mask"].all()
            assert (examples.lengths[rows[call.places]] == call.inputs["input_ids"].shape[1]).all()

    def test_choices_of_different_lengths_are_in_different_calls(self, base: TorchBase) -> None:
        """The scores are those of each separate choice, in the order of the choices."""
        tokenizer, names = Tokenizer.from_json(tokenizer_json(), MAX_TOKENS), tuple(one.name for one in base.inputs)
        texts = [tuple(Pair("film", " ".join(OTHER[:count])) for count in own) for own in ((3, 1), (1, 2, 3))]
        found = TextExamples.of(texts, np.array([0, 1]), tokenizer, names, "multiple_choice")
        model = adapted(base, GATED)
        with torch.inference_mode():
            results = results_of(model, found, np.arange(2))
            expected = [
                model.head(**{name: torch.from_numpy(array) for name, array in tokenizer.batch([pair], names).items()})
                for pairs in texts
                for pair in pairs
            ]
        torch.testing.assert_close(results, torch.cat(expected), rtol=0, atol=1e-5)

    def test_labels_of_words_find_their_tokens(self, base: TorchBase) -> None:
        """Results of calls are joined; nothing is learned after the tokens of a shorter row."""
        tokenizer, names = Tokenizer.from_json(tokenizer_json(), MAX_TOKENS), tuple(one.name for one in base.inputs)
        words = [OTHER[:5], OTHER[:2], OTHER[:4]]
        found = TextExamples.of(words, [np.arange(len(own)) for own in words], tokenizer, names, "token")

        class Places(AdaptedModel):
            """Returns for each token its length and its position."""

            pads = False  # type: ignore[assignment]

            def result(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
                rows, tokens = inputs["input_ids"].shape
                return torch.stack(
                    [torch.full((rows, tokens), float(tokens)), torch.arange(tokens).expand(rows, -1)], -1
                )

        results = results_of(Places(base, None, sites_of(base)), found, np.arange(3))
        places, classes = found.matched(results, np.arange(3))
        assert classes.tolist() == [0, 1, 2, 3, 4, 0, 1, 0, 1, 2, 3]
        assert places.tolist() == [[len(own) + 2, at + 1] for own in words for at in range(len(own))]


@pytest.mark.parametrize("name", ["gate", "convolution"])
def test_cached_rows_are_computed_without_padding(name: str, base: TorchBase, convolution: TorchBase) -> None:
    own, options = (base, GATED) if name == "gate" else (convolution, None)
    data, model = review_data(own), attach(own, make_adapter(own, options=options))
    assert HiddenCache.of(model, data.training, 8, 2**22) is not None
    first = model.to_adapter()
    losses = [train(attach(own, first), data, replace(QUICK, cache_mb=size)).losses for size in (0, 64)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_students_learn_from_unpadded_teacher_rows(base: TorchBase) -> None:
    """The distance in a batch of several lengths is the mean over its separate rows."""
    examples: Any = review_data(base).training
    teacher = Teacher(adapted(base, GATED), DistillationLoss())
    student, rows = adapted(base), np.arange(12)
    assert student.pads
    with torch.inference_mode():
        _, together = teacher.distance(student, examples, rows)
        each = [teacher.distance(student, examples, rows[at : at + 1])[1] for at in range(len(rows))]
    torch.testing.assert_close(together, torch.stack(each).mean(), rtol=1e-5, atol=0)
