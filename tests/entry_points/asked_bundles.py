"""The bundles that every entry point is asked, each with its oracle and its rows.

They differ in what decides whether rows may share a call: a base that padding changes, adapters that count it, rows
that depend on each other, lengths that are fixed or come in steps, a tokenizer that pads on the left.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import torch
import transformers
from heard import Heard
from onnxruntime.quantization import QuantType, quantize_dynamic
from oracle import Oracle, Pair, Recipe, Right, Row, rounded
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

import adapter_export as ae
from adapter_export.graph.adapter import Adapter
from adapter_export.graph.compose import weighted_fusion
from adapter_export.graph.heads import HeadOptions, make_head
from adapter_export.graph.kinds import KINDS, BottleneckOptions, LoraOptions
from adapter_export.graph.tasks import Task
from adapter_export.onnx_backend.base.onnx_base import LENGTHS_KEY

WIDTH, NARROW, RANK, LIMIT = 32, 4, 2, 40
WORDS = (
    *(
        "moon",
        "far",
        "sun",
        "near",
        "who",
        "wrote",
        "it",
        "was",
        "a",
        "good",
        "bad",
        "dull",
        "book",
        "film",
        "the",
        "and",
    ),
    *(
        "not",
        "of",
        "in",
        "on",
        "we",
        "they",
        "saw",
        "read",
        "one",
        "two",
        "three",
        "long",
        "short",
        "road",
        "sea",
        "hill",
    ),
    *("warm", "cold", "day", "night", "?", ".", "play", "##s", "##ing", "##ed"),
)
INPUTS = ("input_ids", "attention_mask", "token_type_ids")
ENDS = (".attention", ".ffn")
BERT = {
    "layers.0.attention": "encoder.layer.0.attention.output.dense",
    "layers.0.ffn": "encoder.layer.0.output.dense",
    "layers.0.attention.query": "encoder.layer.0.attention.self.query",
    "layers.0.attention.value": "encoder.layer.0.attention.self.value",
}
GPT2 = {"layers.0.attention": "h.0.attn.c_proj", "layers.0.ffn": "h.0.mlp.c_proj"}
SIZES = {"hidden_size": WIDTH, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64}

TASKS: Mapping[str, Mapping[str, Any]] = {
    "topic": {"type": "single_label", "labels": ("red", "green", "blue"), "max_tokens": 16},
    "tone": {"type": "single_label", "labels": ("up", "down")},
    "tags": {
        "type": "multi_label",
        "labels": ("z", "a", "m"),
        "thresholds": (0.4, 0.5, 0.6),
        "truncation": "left",
        "max_tokens": 12,
    },
    "follows": {"type": "single_label", "labels": ("yes", "no"), "input": "pair"},
    "words": {"type": "token", "labels": ("O", "NAME", "PLACE")},
    "place": {"type": "span", "input": "pair"},
    "likeness": {"type": "regression", "input": "pair"},
    "vector": {"type": "embedding", "prefix": "the ", "pooling": "mean", "normalised": True},
    "order": {"type": "ranking", "input": "pair", "activation": "sigmoid"},
    "choice": {"type": "multiple_choice", "input": "pair"},
}
REASONS = {"text": "padd|no token|no text|at least 1", "arrays": "padd|length|shape|no token|at least"}
"""Expressions that find the reason of a refusal in a message."""

OWN = {"type": "single_label", "labels": ("no", "maybe", "yes")}


def words(count: int, start: int = 0) -> str:
    """Return a text of the given number of words."""
    return " ".join(WORDS[(start + 5 * at) % 39] for at in range(count))


TEXTS = ("moon", words(3, 2), "who wrote it ?", words(9, 4), words(14, 7), words(60, 1))
PAIRS: tuple[Pair, ...] = (
    ("who ?", "we saw the sea"),
    ("what was it", words(12, 3)),
    (words(6, 5), words(2, 8)),
    ("one", words(50, 9)),
)
CHOICES = [("where was it", one) for one in ("on the hill", words(11, 6), "in the cold sea they saw")]


class Case(NamedTuple):
    """A row with its right answer; without one, an expression that finds the reason in a message."""

    row: Row
    right: Right | None
    reason: str


@dataclass(frozen=True, eq=False)
class Bundle:
    """A bundle with its oracle.

    Attributes:
        name: name in the table.
        folder: folder of the bundle.
        oracle: answers its rows.
        rows: the rows.
    """

    name: str
    folder: Path
    oracle: Oracle
    rows: tuple[Row, ...]

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """Its manifest, as a client reads it."""
        found: dict[str, Any] = json.loads((self.folder / "manifest.json").read_text("utf-8"))
        return found

    @cache  # noqa: B019 - bundles live as long as the tests
    def cases(self, form: str) -> tuple[Case, ...]:
        """The rows as text, or as ids, where each choice of a question is a row of its own."""
        found, refused = [], set[str | None]()
        for row in self.rows:
            for one in [row] if form == "text" else [replace(row, asked=piece) for piece in row.pieces]:
                right = None
                if self.oracle.refuses(one):
                    if one.adapter in refused:  # one request per row, which takes time
                        continue
                    refused.add(one.adapter)
                else:
                    right = self.oracle.of_text(one) if form == "text" else self.oracle.of_arrays(one)[0]
                found.append(Case(one, right, REASONS[form]))
        return tuple(found)

    def arrays(self, row: Row) -> dict[str, np.ndarray]:
        """The inputs of a row, int64 [1, tokens], padded to a length that the base takes."""
        (tokens,) = self.oracle.tokens(row)
        arrays = tokens.arrays(self.oracle.inputs)
        count = len(tokens.encoding.ids)
        width = min((one for one in self.oracle.allowed if one >= count), default=count)
        return {name: np.pad(array, [(0, 0), (0, width - count)]) for name, array in arrays.items()}

    def tolerance(self, row: Row, *, same_kernels: bool = True) -> float:
        """The allowed error of each number of an answer.

        It is that of the golden vectors for the result of the head; softmax, sigmoid, and the product of two
        probabilities change by no more than their arguments. A strength and weights scale the error of an update.
        """
        recipe = self.oracle.recipe(row)
        if self.oracle.graph is not None and same_kernels:  # the same graph on the same rows: sums in another order
            return 1e-4
        golden = self.manifest["golden"]
        if recipe is not None:
            golden = next(one["golden"] for one in self.manifest["adapters"] if one["name"] == recipe.name)
        factor = max(1.0, abs(row.strength), *(abs(one) for one in (row.weights or {}).values()))
        return float(max(golden["absolute"].values()) * factor)


def recipe(name: str, kind: str, sites: Mapping[str, str], **options: Any) -> Recipe:
    """An adapter with random weights of standard deviation 0.2."""
    task, random = TASKS[name.partition(".")[0]], np.random.default_rng([*name.encode()])
    gate, activation = options.get("gate", False), options.get("activation", "relu")
    shapes: dict[str, tuple[int, ...]] = {}
    for site in sites:
        if kind == "lora" and not site.endswith(ENDS):
            shapes |= {f"{site}.lora_A.weight": (WIDTH, RANK), f"{site}.lora_B.weight": (RANK, WIDTH)}
        if kind == "bottleneck" and site.endswith(ENDS[options.get("first", 1) :]):
            shapes |= {f"{site}.down.weight": (WIDTH, NARROW), f"{site}.down.bias": (NARROW,)}
            shapes |= {f"{site}.up.weight": (NARROW, WIDTH), f"{site}.up.bias": (WIDTH,)}
            shapes |= {f"{site}.gate.weight": (WIDTH, 1), f"{site}.gate.bias": (1,)} if gate else {}
    width = {"multiple_choice": 1, "regression": 2, "ranking": 1, "span": 2}.get(task["type"]) or len(
        task.get("labels", ())
    )
    if task["type"] != "embedding":
        shapes |= {"head.classifier.weight": (WIDTH, width), "head.classifier.bias": (width,)}
    weights = {key: random.normal(0, 0.2, shape).astype(np.float32) for key, shape in shapes.items()}
    return Recipe(name, kind, task, weights, activation)


def with_adapters(base: ae.Base, recipes: Sequence[Recipe]) -> list[Adapter]:
    """The adapters of recipes, as the package writes them."""
    made: dict[str, Adapter] = {}
    for one in recipes:
        if one.kind == "own":
            continue
        if one.kind == "sum":
            members = [made[member.name] for member, _ in one.members]
            shares = {member.name: share for member, share in one.members}
            made[one.name] = weighted_fusion(*members, name=one.name, weights=shares, head=members[0].name)
            continue
        if one.kind == "lora":
            kind = KINDS["lora"](LoraOptions(rank=RANK))
            placements = kind.placements(base.sites.map)
        else:
            name = "houlsby" if any(site.endswith(".attention") for site in one.sites) else "pfeiffer"
            kind = KINDS[name](BottleneckOptions(one.activation, gate=one.gated))
            placements = kind.with_widths(b=NARROW).placements(base.sites.map)
        options = HeadOptions(l2_normalise=True) if one.task["type"] == "embedding" else HeadOptions()
        head = make_head(Task(**one.task), width=WIDTH, numbers=2, options=options)
        made[one.name] = Adapter(one.name, kind.name, base.fingerprint, kind.graphs, placements, one.weights, head)
    return [*made.values()]


def tokenizer(specials: bool, side: str) -> Tokenizer:
    """A tokenizer of these words that pads on a side, with `[CLS]` and `[SEP]` or without any special token."""
    known = {word: at for at, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    made = Tokenizer(models.WordPiece(known, unk_token="[UNK]"))
    made.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]"])
    made.normalizer, made.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    if specials:
        parts = [(word, known[word]) for word in ("[CLS]", "[SEP]")]
        made.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=parts
        )
    made.enable_padding(direction=side, pad_id=0, pad_token="[PAD]")
    return made


def _save(folder: Path, module: transformers.PreTrainedModel, specials: bool = True, side: str = "right") -> None:
    """Write a Hugging Face folder."""
    module.eval().save_pretrained(folder)
    tokenizer(specials, side).save(str(folder / "tokenizer.json"))
    known = {"tokenizer_class": "PreTrainedTokenizerFast", "padding_side": side, "model_max_length": LIMIT}
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]"} | (
        {"cls_token": "[CLS]", "sep_token": "[SEP]"} if specials else {}
    )
    (folder / "tokenizer_config.json").write_text(json.dumps(known | names))


def _bert() -> transformers.PreTrainedModel:
    torch.manual_seed(0)
    names = dict(enumerate(OWN["labels"]))
    config = transformers.BertConfig(
        vocab_size=len(WORDS) + 4,
        max_position_embeddings=LIMIT,
        initializer_range=0.2,
        id2label=names,
        label2id={label: at for at, label in names.items()},
        problem_type="single_label_classification",
        **SIZES,
    )
    return transformers.BertForSequenceClassification(config)


def _convbert() -> transformers.PreTrainedModel:
    torch.manual_seed(1)
    config = transformers.ConvBertConfig(
        vocab_size=len(WORDS) + 4,
        max_position_embeddings=LIMIT,
        initializer_range=0.2,
        embedding_size=WIDTH,
        conv_kernel_size=3,
        **SIZES,
    )
    return transformers.ConvBertModel(config)


def _gpt2() -> transformers.PreTrainedModel:
    torch.manual_seed(2)
    sizes = {"n_embd": WIDTH, "n_layer": 1, "n_head": 4, "n_positions": LIMIT, "vocab_size": len(WORDS) + 4}
    special = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    return transformers.GPT2Model(transformers.GPT2Config(initializer_range=0.2, use_cache=False, **sizes, **special))


def _recipes(sites: Mapping[str, str]) -> dict[str, Recipe]:
    """An adapter of each task, gated ones, and a sum."""
    found = [recipe(name, "bottleneck", sites) for name in TASKS if name not in ("tone", "words")]
    if any(not site.endswith(ENDS) for site in sites):
        found.append(recipe("tone", "lora", sites))
    found.append(recipe("words", "bottleneck", sites, first=0, activation="gelu"))
    found += [recipe(f"{name}.gated", "bottleneck", sites, gate=True) for name in ("topic", "place")]
    named = {one.name: one for one in found}
    members = ((named["topic"], 0.7), (named["tags"], -0.5))
    named["mixed"] = Recipe("mixed", "sum", TASKS["topic"], named["topic"].weights, members=members)
    return named


def rows_of(recipes: Mapping[str, Recipe], own: bool) -> tuple[Row, ...]:
    """Rows for these adapters: different lengths and adapters beside each other."""
    found: list[Row] = []
    for name, one in recipes.items():
        if one.kind == "own":
            continue
        asked: Sequence[Any] = PAIRS if one.task.get("input") == "pair" else TEXTS
        if one.task["type"] == "multiple_choice":
            asked = [CHOICES, CHOICES[:2], CHOICES[1:]]
        found += [Row(each, name) for each in asked]
    found += [Row(each) for each in (TEXTS if own else TEXTS[:3])]
    order = np.random.default_rng(0).permutation(len(found))
    return tuple(found[at] for at in order)


def _some(recipes: Mapping[str, Recipe], *names: str) -> dict[str, Recipe]:
    return {name: recipes[name] for name in names}


@dataclass(frozen=True)
class Plan:
    """Recipe for a bundle.

    Attributes:
        base: the Hugging Face folder.
        adapters: adapters of the recipes; all if empty.
        capture: options of `capture`.
        of_graph: creates the base from its ONNX graph. Default: the base is an archive.
        allowed: supported lengths; all if empty.
        neutral: whether padding has no effect in the base.
        build: options of `build`.
        added: adapters added later.
        more: further rows.
    """

    base: str
    adapters: tuple[str, ...] = ()
    capture: Mapping[str, Any] = field(default_factory=dict)
    of_graph: Callable[[Path, Path], object] | None = None
    allowed: tuple[int, ...] = ()
    neutral: bool = True
    build: Mapping[str, Any] = field(default_factory=dict)
    added: tuple[str, ...] = ()
    more: tuple[Row, ...] = ()

    @property
    def base_head(self) -> bool:
        """True if the base has its own head."""
        return self.base == "bert"

    @property
    def own_arithmetic(self) -> bool:
        """True if the graph differs from the model, so that its own results are the reference."""
        return self.of_graph is _dynamic or "base_precision" in self.build

    @property
    def limit(self) -> int:
        """The most tokens that it takes."""
        return self.allowed[-1] if self.allowed else LIMIT

    @property
    def inputs(self) -> tuple[str, ...]:
        """The inputs of the base."""
        return INPUTS[: {"gpt2": 2}.get(self.base, 1 if "inputs" in self.capture else 3)]


def _dynamic(source: Path, target: Path) -> None:
    """The graph in integers whose scales are those of a whole batch."""
    quantize_dynamic(source, target, weight_type=QuantType.QInt8)


def _in_steps(source: Path, target: Path) -> None:
    """The graph with a record of the lengths that it takes: multiples of 8 without one of them."""
    model = onnx.load(source)
    record = {"minimum": 8, "maximum": LIMIT, "multiple_of": 8, "exceptions": [24]}
    known = {"lengths": {"sequence": record}, "pads": True}
    model.metadata_props.add(key=LENGTHS_KEY, value=json.dumps(known))
    onnx.save(model, target)


FEW = ("topic", "words", "place", "vector")
SOME = (*FEW, "tags", "choice")
GATED = ("topic.gated", "place.gated")
STRONG = tuple(
    Row(text, name, strength)
    for text, name, strength in zip(TEXTS, ("topic", "tone", "tags") * 2, (0.5, -1.0) * 3, strict=True)
)
WEIGHED = tuple(Row(text, "mixed", weights={"topic": 0.3, "tags": 0.9}) for text in TEXTS[:4])
EMPTY = Row("", "topic")
"""It is answered where the tokenizer adds special tokens, and refused where it gives no token."""

PLANS: Mapping[str, Plan] = {
    "every task": Plan("bert", more=(*STRONG, *WEIGHED, EMPTY)),
    "convolution": Plan("convbert", SOME, neutral=False),
    "left padding": Plan("gpt2", (*SOME, *GATED), more=(EMPTY,)),
    "no mask": Plan("bare", FEW, {"inputs": ["input_ids=int64[batch,sequence]"]}, neutral=False),
    "steps": Plan("bare", (*FEW, *GATED), of_graph=_in_steps, allowed=(8, 16, 32, 40)),
    "fixed length": Plan("bare", (*FEW, *GATED), {"lengths": ["sequence=16"]}, allowed=(16,)),
    "int8": Plan("bert", SOME, build={"base_precision": "int8"}),
    "dynamic int8": Plan("bare", FEW, of_graph=_dynamic, neutral=False),
    "fp16": Plan("bert", (*FEW, *GATED), build={"base_precision": "fp16"}),
    "int8 adapters, reserved": Plan(
        "bert",
        ("topic", "place", "vector"),
        build={"reserve": ("houlsby:gelu", "lora"), "adapter_precision": "int8"},
        added=("words.later", "tone"),
    ),
}


def make_models(folder: Path) -> None:
    """Write a Hugging Face folder for each base, and what several bundles are made of: `bert.pt`, `bare.onnx`."""
    _save(folder / "bert", _bert())
    _save(folder / "bare", _bert().bert)
    _save(folder / "convbert", _convbert())
    _save(folder / "gpt2", _gpt2(), specials=False, side="left")
    ae.capture(folder / "bert", folder / "bert.pt", reporter=Heard())
    graph = ae.capture(folder / "bare", folder / "bare.pt", reporter=Heard()).exported(folder)
    onnx.save(onnx.load(graph.path), folder / "bare.onnx")


def recipes_of(plan: Plan) -> dict[str, Recipe]:
    """The adapters of a bundle, in the order in which they are built."""
    sites = (
        GPT2
        if plan.base == "gpt2"
        else {site: path for site, path in BERT.items() if plan.base != "convbert" or site.endswith(ENDS)}
    )
    known = _recipes(sites)
    names = plan.adapters or tuple(known)
    found = _some(known, *names)
    for name in plan.added:
        found[name] = recipe(name, "lora" if name == "tone" else "bottleneck", sites, first=0, activation="gelu")
    if plan.build.get("adapter_precision") == "int8":
        found = {
            name: replace(one, weights={key: rounded(array) for key, array in one.weights.items()})
            for name, one in found.items()
        }
    if plan.base_head:
        found["own"] = Recipe("base-head", "own", OWN)
    return found


def make_bundle(name: str, models: Path, folder: Path) -> None:
    """Build the bundle of the plan of this name in `bundle`."""
    plan = PLANS[name]
    build = dict(plan.build)
    if plan.of_graph is not None:
        plan.of_graph(models / f"{plan.base}.onnx", folder / "model.onnx")
        base = ae.open_base(folder / "model.onnx")
        build |= {"tokenizer": models / plan.base / "tokenizer.json", "max_tokens": plan.limit}
    elif plan.base == "bert":
        base = ae.open_base(models / "bert.pt")
    else:
        base = ae.capture(models / plan.base, folder / "model.pt", reporter=Heard(), **plan.capture)
    adapters = with_adapters(base, [*recipes_of(plan).values()])
    first = [one for one in adapters if one.name not in plan.added]
    ae.build(base, first, folder / "bundle", reporter=Heard(), **build)
    if plan.added:
        later = [one for one in adapters if one.name in plan.added]
        stored = {name: build[name] for name in ("adapter_precision",) if name in build}
        ae.add(folder / "bundle", later, against=base, reporter=Heard(), **stored)


def opened(name: str, models: Path, folder: Path) -> Bundle:
    """A bundle that `make_bundle` has made."""
    plan, recipes = PLANS[name], recipes_of(PLANS[name])
    kind = transformers.AutoModelForSequenceClassification if plan.base_head else transformers.AutoModel
    oracle = Oracle(
        kind.from_pretrained(models / plan.base).eval(),
        models / plan.base / "tokenizer.json",
        plan.limit,
        plan.inputs,
        GPT2 if plan.base == "gpt2" else BERT,
        recipes,
        plan.allowed,
        plan.neutral,
        "bert" if plan.base_head else "",
        folder / "bundle" if plan.own_arithmetic else None,
    )
    return Bundle(name, folder / "bundle", oracle, (*rows_of(recipes, plan.base_head), *plan.more))


def _unheard(_: str) -> None:
    """Notes of a build are those of other tests."""
