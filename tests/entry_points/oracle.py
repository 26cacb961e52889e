"""Correct answer to a row: the torch model with hooks on this single row, without padding.

Written with torch, NumPy and the tokenizers library. It imports nothing from the package, so that both cannot share a
mistake.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime as ort
import tokenizers
import torch
from safetensors.numpy import load_file
from torch import Tensor, nn

LONGEST_SPAN = 30
ACTIVATIONS = {"relu": nn.functional.relu, "gelu": nn.functional.gelu}

Pair = tuple[str, str]
Asked = str | Pair | list[Pair]
"""A text, a pair, or a question with each of its choices."""


@dataclass(frozen=True)
class Recipe:
    """An adapter as numbers.

    Attributes:
        name: its name.
        kind: `bottleneck`, `lora`, `sum` of other adapters, or `own`: the head of the model's class.
        task: the keys of a task in docs/reference/format.md.
        weights: `SITE.PARAMETER` and `head.PARAMETER`; those of linears are `[in, out]`.
        activation: of a bottleneck.
        members: of a sum, with the weight of each.
    """

    name: str
    kind: str
    task: Mapping[str, Any]
    weights: Mapping[str, np.ndarray] = field(default_factory=dict)
    activation: str = "relu"
    members: tuple[tuple[Recipe, float], ...] = ()

    @property
    def gated(self) -> bool:
        """True if it averages over all tokens, including padding."""
        return any(".gate." in name for name in self.weights) or any(one.gated for one, _ in self.members)

    @property
    def sites(self) -> set[str]:
        """Where it acts."""
        ends = (".down.weight", ".lora_A.weight")
        own = {name.removesuffix(end) for name in self.weights for end in ends if name.endswith(end)}
        return own.union(*(one.sites for one, _ in self.members))

    def change(self, site: str, read: Tensor, out: Tensor, shares: Mapping[str, float] | None = None) -> Tensor:
        """Return the term added to a site's module result `out` with input `read`; both are [1, tokens, width]."""
        if self.kind == "sum":
            acting = [(one, (shares or {}).get(one.name, share)) for one, share in self.members if site in one.sites]
            return torch.stack([share * one.change(site, read, out) for one, share in acting]).sum(0)

        def at(parameter: str) -> Tensor:
            return torch.from_numpy(self.weights[f"{site}.{parameter}"])

        if self.kind == "lora":
            added = read @ at("lora_A.weight") @ at("lora_B.weight")
        else:
            inner = ACTIVATIONS[self.activation](out @ at("down.weight") + at("down.bias"))
            added = inner @ at("up.weight") + at("up.bias")
        if f"{site}.gate.weight" in self.weights:
            added = added * torch.sigmoid(out @ at("gate.weight") + at("gate.bias")).mean(1, keepdim=True)
        return added

    def head(self, hidden: Tensor) -> Tensor:
        """The result of its head for the last hidden state [tokens, width]."""
        weights = {name: torch.from_numpy(array) for name, array in self.weights.items() if name.startswith("head.")}
        if self.task["type"] == "embedding":
            return nn.functional.normalize(hidden.mean(0), dim=-1)
        pooled = hidden if self.task["type"] in ("token", "span") else hidden.mean(0)
        return pooled @ weights["head.classifier.weight"] + weights["head.classifier.bias"]


@dataclass(frozen=True)
class Row:
    """A request.

    Attributes:
        asked: the question.
        adapter: the adapter; `None` is the base, or the head of its class.
        strength: strength of the adapter.
        weights: member weights of a sum, overriding its own.
    """

    asked: Asked
    adapter: str | None = None
    strength: float = 1.0
    weights: Mapping[str, float] | None = None

    @property
    def pieces(self) -> list[str | Pair]:
        """Texts to tokenize: the text, or a pair for each choice."""
        return list(self.asked) if isinstance(self.asked, list) else [self.asked]


class Tokens(NamedTuple):
    """A text as tokens: cut, not padded."""

    encoding: tokenizers.Encoding
    cut: int

    def arrays(self, names: Sequence[str]) -> dict[str, np.ndarray]:
        """The inputs of the model, int64 [1, tokens]."""
        columns = {
            "input_ids": self.encoding.ids,
            "attention_mask": [1] * len(self.encoding.ids),
            "token_type_ids": self.encoding.type_ids,
        }
        return {name: np.array([columns[name]], np.int64) for name in names}

    @property
    def context(self) -> list[int]:
        """For each token a 1 if it may be the answer to a question: those of the second text."""
        return [int(part == 1) for part in self.encoding.sequence_ids]


class Right(NamedTuple):
    """The answer to a row as JSON, and by how much its choice is ahead of the next best one."""

    document: dict[str, Any]
    margin: float


@dataclass(frozen=True)
class Oracle:
    """Answers rows of one bundle.

    Attributes:
        module: the model; its last hidden state is the first output, or that of its part `body`.
        tokenizer: its `tokenizer.json`.
        limit: the most tokens that it takes.
        allowed: the lengths that it takes; all up to the limit if empty.
        inputs: the names of its inputs.
        places: for each site, the path of the module in `module` whose result an adapter changes.
        recipes: the adapters by name.
        neutral: whether padding changes nothing in the model.
        body: the attribute of `module` that is the bare model, if it has a head.
        graph: a bundle whose graph takes the place of the module, since its arithmetic is another one.
    """

    module: nn.Module
    tokenizer: Path
    limit: int
    inputs: tuple[str, ...]
    places: Mapping[str, str]
    recipes: Mapping[str, Recipe]
    allowed: tuple[int, ...] = ()
    neutral: bool = True
    body: str = ""
    graph: Path | None = None

    def recipe(self, row: Row) -> Recipe | None:
        """Return the adapter of a row; defaults to the base head."""
        own = next((one for one in self.recipes.values() if one.kind == "own"), None)
        return own if row.adapter is None else self.recipes[row.adapter]

    def tokens(self, row: Row) -> list[Tokens]:
        """The tokens of a row: one text, or one for each choice."""
        recipe = self.recipe(row)
        task = {} if recipe is None else recipe.task
        limit, side = min(task.get("max_tokens") or self.limit, self.limit), task.get("truncation", "right")
        tokenizer = self._tokenizer
        tokenizer.no_padding()
        found = []
        for piece in row.pieces:
            texts = (task.get("prefix", "") + piece,) if isinstance(piece, str) else piece
            tokenizer.no_truncation()
            whole = len(tokenizer.encode(*texts).ids)
            tokenizer.enable_truncation(limit, strategy="longest_first", direction=side)
            encoding = tokenizer.encode(*texts)
            found.append(Tokens(encoding, whole - len(encoding.ids)))
        return found

    @cached_property
    def _tokenizer(self) -> tokenizers.Tokenizer:
        return tokenizers.Tokenizer.from_file(str(self.tokenizer))

    def may_pad(self, row: Row) -> bool:
        """Return whether padding after its tokens leaves the answer unchanged."""
        recipe = self.recipe(row)
        return self.neutral and "attention_mask" in self.inputs and not (recipe is not None and recipe.gated)

    def refuses(self, row: Row) -> bool:
        """Return whether a row has no correct answer.

        It has no tokens, or a length that the base does not support while padding changes the answer.
        """
        lengths = {len(one.encoding.ids) for one in self.tokens(row)}
        return 0 in lengths or (bool(self.allowed) and not self.may_pad(row) and not lengths <= {*self.allowed})

    def results(self, row: Row) -> list[dict[str, np.ndarray]]:
        """For each text of a row the model's outputs, and as `""` what the head gives."""
        return [self._result(row, one) for one in self.tokens(row)]

    def of_text(self, row: Row) -> Right:
        """The answer to a row that is sent as text."""
        tokens, results = self.tokens(row), self.results(row)
        recipe = self.recipe(row)
        if recipe is None:
            return Right(_outputs(results[0]), np.inf)
        if isinstance(row.asked, list):
            found = choice([one[""][0] for one in results])
        else:
            found = answer(recipe.task, results[0][""], tokens[0], row.asked)
        cut = max(one.cut for one in tokens)
        named = {"adapter": recipe.name, "task": recipe.task["type"], **found.document}
        return Right(named | ({"cut": cut} if cut else {}), found.margin)

    def of_arrays(self, row: Row) -> list[Right]:
        """The answers to a row that is sent as ids: one, or one for each choice."""
        found = []
        recipe = self.recipe(row)
        for one, result in zip(self.tokens(row), self.results(row), strict=True):
            if recipe is None:
                found.append(Right(_outputs(result), np.inf))
                continue
            said = answer(recipe.task, result[""], one, None)
            found.append(Right({"adapter": recipe.name, "task": recipe.task["type"], **said.document}, said.margin))
        return found

    def _result(self, row: Row, tokens: Tokens) -> dict[str, np.ndarray]:
        recipe, arrays = self.recipe(row), tokens.arrays(self.inputs)
        if self.graph is not None:
            return self._of_graph(row, recipe, arrays)
        given = {name: torch.from_numpy(array) for name, array in arrays.items()}
        with torch.inference_mode(), self._hooks(row, recipe):
            if recipe is not None and recipe.kind == "own":
                return {"": self.module(**given).logits[0].numpy()}
            outputs = self._bare(**given)
            hidden = outputs.last_hidden_state[0]
            if recipe is not None:
                return {"": recipe.head(hidden).numpy()}
            return {name: value[0].numpy() for name, value in outputs.items() if isinstance(value, Tensor)}

    @property
    def _bare(self) -> nn.Module:
        return self.module.get_submodule(self.body)

    @contextmanager
    def _hooks(self, row: Row, recipe: Recipe | None) -> Iterator[None]:
        def hook(site: str) -> Any:
            def add(_: object, given: tuple[Tensor, ...], out: Tensor) -> Tensor:
                assert recipe is not None
                return out + row.strength * recipe.change(site, given[0], out, row.weights)

            return add

        sites = set() if recipe is None else recipe.sites
        handles = [self._bare.get_submodule(self.places[site]).register_forward_hook(hook(site)) for site in sites]
        yield
        for handle in handles:
            handle.remove()

    def _of_graph(self, row: Row, recipe: Recipe | None, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run the graph of the bundle with plain ONNX Runtime."""
        manifest, session = self._session
        assert row.strength == 1.0
        assert row.weights is None
        outputs = [one["name"] for one in manifest["outputs"]]
        heads = {one["output"] for one in manifest["heads"]}
        if recipe is None:
            outputs = [name for name in outputs if name not in heads]
            return dict(zip(outputs, (one[0] for one in session.run(outputs, dict(arrays))), strict=True))
        record = next(one for one in manifest["adapters"] if one["name"] == recipe.name)
        assert self.graph is not None
        tensors = load_file(self.graph / record["safetensors"])
        (found,) = session.run([record["output"]], {**arrays, **tensors})
        return {"": found[0]}

    @cached_property
    def _session(self) -> tuple[dict[str, Any], ort.InferenceSession]:
        assert self.graph is not None
        manifest = json.loads((self.graph / "manifest.json").read_text("utf-8"))
        options = ort.SessionOptions()
        options.log_severity_level, options.intra_op_num_threads = 3, 1
        return manifest, ort.InferenceSession(self.graph / manifest["graphs"]["slots"], options)


def rounded(tensor: np.ndarray) -> np.ndarray:
    """A tensor as files in int8 store it: integers from -127 to 127 times a factor of 17 bits for each column."""
    if tensor.ndim < 2:
        return tensor
    mantissa, exponent = np.frexp(np.abs(tensor.astype(np.float64)).max(axis=0, keepdims=True) / 127)
    scale = np.ldexp(np.rint(np.ldexp(mantissa, 17)), exponent - 17)
    return (np.clip(np.rint(tensor / scale), -127, 127) * scale).astype(np.float32)


def answer(task: Mapping[str, Any], result: np.ndarray, tokens: Tokens, asked: Asked | None) -> Right:
    """Convert a head's result for one text to an answer; `asked` is `None` for ids."""
    kind, labels = task["type"], list(task.get("labels", ()))
    encoding = tokens.encoding
    if kind == "single_label":
        return _class(result, labels)
    if kind == "multi_label":
        shares = sigmoid(result)
        limits = np.array(task.get("thresholds") or [0.5] * len(labels))
        chosen = [label for label, share, limit in zip(labels, shares, limits, strict=True) if share >= limit]
        shown = dict(zip(labels, shares.tolist(), strict=True))
        return Right({"labels": chosen, "probabilities": shown}, 2 * float(np.abs(shares - limits).min()))
    if kind == "token":
        said = [_class(row, labels) for row in result]
        if asked is not None:
            own = [at for at, special in enumerate(encoding.special_tokens_mask) if not special]
            places = [dict(zip(("start", "end"), encoding.offsets[at], strict=True)) for at in own]
            found = [
                {"token": encoding.tokens[at], **place, **said[at].document}
                for at, place in zip(own, places, strict=True)
            ]
            return Right({"tokens": found}, min((said[at].margin for at in own), default=np.inf))
        return Right({"tokens": [one.document for one in said]}, min(one.margin for one in said))
    if kind == "span":
        return _span(result, tokens, asked)
    activated = sigmoid(result) if task.get("activation") == "sigmoid" else result.astype(np.float64)
    if kind == "regression":
        return Right({"numbers": activated.tolist()}, np.inf)
    if kind == "embedding":
        return Right({"vector": activated.tolist()}, np.inf)
    return Right({"score": float(activated[0])}, np.inf)  # of a ranking, or of a choice


def choice(scores: Sequence[float]) -> Right:
    """The best of the choices of a question."""
    shares = softmax(np.array(scores, np.float64))
    return Right({"choice": int(shares.argmax()), "probabilities": shares.tolist()}, _ahead(shares))


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities along the last axis, in float64."""
    raised = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
    return raised / raised.sum(-1, keepdims=True)


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """The probability of each, in float64."""
    return 1 / (1 + np.exp(-logits.astype(np.float64)))


def _class(logits: np.ndarray, labels: Sequence[str]) -> Right:
    shares = softmax(logits)
    best = int(shares.argmax())
    shown = dict(zip(labels, shares.tolist(), strict=True))
    document = {"label": labels[best], "probability": float(shares[best]), "probabilities": shown}
    return Right(document, _ahead(shares))


def _ahead(shares: np.ndarray) -> float:
    """Return the difference between the two highest values."""
    ordered = np.sort(shares.ravel())[::-1]
    return float(ordered[0] - ordered[1]) if ordered.size > 1 else np.inf


def _span(result: np.ndarray, tokens: Tokens, asked: Asked | None) -> Right:
    own = np.flatnonzero(tokens.context)
    starts, ends = softmax(result[own, 0]), softmax(result[own, 1])
    reach = own[None, :] - own[:, None]
    shares = np.where((reach >= 0) & (reach < LONGEST_SPAN), np.outer(starts, ends), 0)
    first, last = np.unravel_index(shares.argmax(), shares.shape)
    probability = float(shares[first, last])
    if asked is None:
        return Right(
            {"first_token": int(own[first]), "last_token": int(own[last]), "probability": probability}, _ahead(shares)
        )
    start, end = tokens.encoding.offsets[own[first]][0], tokens.encoding.offsets[own[last]][1]
    assert isinstance(asked, tuple)
    return Right(
        {"answer": asked[1][start:end], "start": start, "end": end, "probability": probability}, _ahead(shares)
    )


def _outputs(result: Mapping[str, np.ndarray]) -> dict[str, Any]:
    outputs = {name: array.tolist() for name, array in result.items()}
    return {"adapter": None, "task": None, "outputs": outputs}
