"""Train an adapter, or a fusion of adapters, on a table of labelled texts, or attach one for a loop of your own."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypedDict, cast

from adapter_export.api.adapters.adapters import composition_record, load_adapter, load_members
from adapter_export.api.adapters.kinds import at_least_1, kind_names, kind_options, make_kind
from adapter_export.api.adapters.task_facts import check_thresholds, thresholds_for
from adapter_export.api.models.base import (
    Base,
    OnNote,
    OpenOptions,
    PathLike,
    open_base,
    require,
    tell,
    unopened,
)
from adapter_export.api.training.fusion import FusionOptions, fused, fusion_options, fusion_settings
from adapter_export.errors import BaseModelError, TrainingError, UsageError, argument, quoted, within
from adapter_export.format.labelled import Columns
from adapter_export.graph.ops import ACTIVATIONS
from adapter_export.graph.tasks import CAUSAL_LM, DEFAULT_TYPE, LEARNT, TASK_TYPES, Learnt, Task
from adapter_export.option import (
    DEVICE,
    LABEL,
    METRIC,
    SITE_MAP,
    SKIP_INCOMPLETE,
    START,
    TEXT,
    THREADS,
    TOKENIZER,
    TRUST_PICKLE,
    VALIDATION,
    VALIDATION_DATA,
    Option,
    OptionsOf,
)
from adapter_export.safe_io.output import Output

if TYPE_CHECKING:
    from torch.nn import Module

    from adapter_export.dtypes import Weights
    from adapter_export.graph.adapter import Adapter, Head
    from adapter_export.graph.kinds import Kind
    from adapter_export.sites.site import SiteMap
    from adapter_export.text import Tokenizer
    from adapter_export.torch_backend.attach import AttachedAdapter
    from adapter_export.torch_backend.base.capture_module import AxisNames, Inputs
    from adapter_export.torch_backend.train.devices import Engine
    from adapter_export.torch_backend.train.language import LanguageExamples
    from adapter_export.torch_backend.train.record import Progress, TrainingResult
    from adapter_export.torch_backend.train.task_files import TaskFiles, TextTask

MAX_TOKENS = 128
"""Where texts are cut if nobody says it and the model takes as many."""

_DEFAULT_KIND = "houlsby"
_ROWS_MEASURED = 32
"""How many rows show how far a fresh adapter moves the final hidden state."""

_ALIKE = 0.99
"""From this mean cosine of unlike rows on, the contrastive loss is within 0.1 nats of that of vectors all alike."""


_LOOKS = ("pooling", "head_layers", "head_width", "head_activation", "head_dropout", "vector_width", "l2_normalise")
"""The options that say what a fresh head looks like."""


def _schemes() -> tuple[str, ...]:
    from adapter_export.graph.initialise import SCHEMES

    return tuple(SCHEMES)


class TaskOptions(TypedDict, total=False):
    """What is learnt, and by what head."""

    task: Annotated[
        Learnt,
        "What to learn: a label of each text, any number of labels, one of several choices, a label of each word, the "
        "part of a text that answers a question, numbers, vectors, how well two texts go together, or to write: the "
        f"next token of texts, or of answers to prompts.  "
        f"[default: {DEFAULT_TYPE}]",
    ]
    thresholds: Annotated[
        tuple[float, ...],
        "Of `multi_label`: the probability from which on a label applies, one for all or one each.  [default: 0.5]",
    ]
    truncation: Annotated[
        Literal["right", "left"], "The side of a long text that is cut; what the tokenizer says if not given."
    ]
    prefix: Annotated[str, "Of `embedding`: what is put before each text."]
    head: Annotated[
        Literal["fresh", "own"],
        "Where the head starts: at random, or as the base head, whose labels must be those of the data.  "
        "[default: fresh]",
    ]
    pooling: Annotated[
        Literal["mean", "first"], "What the head reads: the mean over the tokens, or the first token.  [default: mean]"
    ]
    head_layers: Annotated[int, Option("Dense layers before the last one.  [default: 0]", least=0)]
    head_width: Annotated[int, Option("Their width; the model's if not given.", least=1)]
    head_activation: Annotated[str, Option("The function behind each of them.  [default: tanh]", choices=ACTIVATIONS)]
    head_dropout: Annotated[float, "The rate before each layer of the head, in training."]
    vector_width: Annotated[int, Option("The width of an embedding; the model's if not given.", least=1)]
    l2_normalise: Annotated[bool, "Embeddings of length 1."]
    packing: Annotated[
        bool, "Of `causal_lm`: texts one after another in full rows, where nothing is cut; else a text in each row."
    ]
    end_token: Annotated[
        str, Option("Of `causal_lm`: the token that ends a text; what the model's config says if not given.", "TOKEN")
    ]


class PassOptions(TypedDict, total=False):
    """Settings of any training loop; `TrainingSettings` has their defaults."""

    epochs: Annotated[int, "Passes over the data, at most.  [default: 4]"]
    batch_size: Annotated[int, "Rows in a step.  [default: 32]"]
    warmup: Annotated[float, "The fraction of the steps that warm up.  [default: 0.1]"]
    weight_decay: Annotated[float, "On the projections.  [default: 0.01]"]
    patience: Annotated[int, "Stop after so many epochs without a better one.  [default: 3]"]
    gradient_accumulation: Annotated[
        int, "Cut the rows of each step into so many parts: less memory, the same step.  [default: 1]"
    ]
    seed: Annotated[int, "Of weights, split, order and dropout.  [default: 0]"]


class LoopOptions(PassOptions, total=False):
    """The settings of the training loop of an adapter."""

    learning_rate: Annotated[float, "The highest one.  [default: 0.001]"]
    drop_layers: Annotated[
        int,
        "Leave the adapters of the lowest layers out of each step, of 0 to so many layers at random, so that they can "
        "be dropped later (AdapterDrop).  [default: 0]",
    ]
    cache_mb: Annotated[
        int, "Keep hidden states below the first adapter between epochs, in so many MB.  [default: 1024]"
    ]


class TrainOptions(FusionOptions, TaskOptions, LoopOptions, total=False):
    """All that is free in a training beside the kind."""


OPTIONS = OptionsOf(kind_options, TrainOptions)
"""The options of `train` by name."""


def train(
    base: Base | PathLike,
    data: PathLike,
    output: PathLike | None = None,
    *,
    text: Annotated[str, TEXT] = "text",
    pair: Annotated[
        str | None,
        Option("The column of the second texts, the contexts, the choices, or of `causal_lm` the answers.", "COLUMN"),
    ] = None,
    label: Annotated[str, LABEL] = "label",
    start: Annotated[str | None, START] = None,
    skip_incomplete: Annotated[bool, SKIP_INCOMPLETE] = False,
    validation: Annotated[float | None, VALIDATION] = None,
    validation_data: Annotated[PathLike | None, VALIDATION_DATA] = None,
    test_data: Annotated[PathLike | None, Option("Measure the finished adapter on this file.", "FILE")] = None,
    tokenizer: Annotated[PathLike | None, TOKENIZER] = None,
    max_tokens: Annotated[
        int | None, f"Cut texts there.  [default: {MAX_TOKENS}, or less if the model says so]"
    ] = None,
    kind: Annotated[
        str | Kind | None, Option(f"What is computed, and where.  [default: {_DEFAULT_KIND}]", kind_names)
    ] = None,
    init: Annotated[
        str | None,
        Option(
            "How the first weights are drawn; by kind if not given, `small_normal` for `houlsby`.", choices=_schemes
        ),
    ] = None,
    name: Annotated[str | None, "What users will call it; the output's name if not given."] = None,
    metric: Annotated[str | None, METRIC] = None,
    class_weights: Annotated[
        Literal["balanced"] | Mapping[str, float] | None,
        "How much rows of a label count in the loss, or `balanced`: rare labels as much as frequent ones.",
    ] = None,
    device: Annotated[str | None, DEVICE] = None,
    precision: Annotated[
        Literal["no", "bf16", "fp16"] | None,
        "Of matrix products; the adapter stays float32. `fp16` needs a GPU.  [default: no, which is float32]",
    ] = None,
    threads: Annotated[int | None, THREADS] = None,
    log_to: Annotated[
        tuple[str, ...],
        "Trackers that follow the run: `tensorboard`, `wandb`, `mlflow` and others that accelerate knows.",
    ] = (),
    resume: Annotated[bool, "Go on with an interrupted run, and stop if there is none."] = False,
    restart: Annotated[bool, "Forget an interrupted run."] = False,
    site_map: Annotated[PathLike | None, SITE_MAP] = None,
    trust_pickle: Annotated[bool, TRUST_PICKLE] = False,
    fuse: Sequence[Adapter | PathLike] = (),
    force: bool = False,
    on_note: OnNote | None = None,
    progress: Progress | None = None,
    **options: Annotated[Any, OPTIONS],
) -> Adapter:
    """Train an adapter with a head, or a fusion; the base stays as it is.

    The epoch that does best on the validation rows is kept. With the same arguments, the result is the same bit for
    bit. The annotations describe the other arguments, which are the options of `adapter-export train`.

    Args:
        base: the model, one that torch can train.
        data: labelled texts: csv, tsv or jsonl in UTF-8; of `causal_lm` texts, or prompts and answers, or a `.txt` file
            with a text in each line. For a base with a processor: a folder with a folder of images or audio for each
            label, or such a table with their paths.
        output: the adapter folder to write, with its learning curve. An interrupted run goes on when it is given again.
        fuse: learn a fusion of these adapters, which stay as they are, in the place of a new adapter.
        force: replace what is at `output`.
        on_note: is told what is doubtful in the data.
        progress: is told of the run as it goes.

    Started by `torchrun` or `accelerate launch`, all processes share the rows of each step, and the first one writes.

    Returns:
        The adapter; its `training` is the record of the run: settings, data, scores of each epoch and of the test data.

    Raises:
        UsageError: arguments do not go together, or have a value that they cannot have.
        BaseModelError: the base cannot be trained so.
        DataError: the data cannot be used.
        AdapterError: the kind or the members of the fusion do not fit the base.
        TrainingError: the loss is not finite, or the interrupted run is another one.
    """
    own_kind, given = OPTIONS.split("train", options)
    check_apart(validation=validation, validation_data=validation_data)
    check_apart(resume=resume, restart=restart)
    path = None if output is None else Path(output)
    if path is not None:
        sources = [base, data, validation_data, test_data, tokenizer, fuse]
        Output(path, force).ensure_writable(folder=True, sources=sources)
    fusion = fusion_options(given, fuse)
    not_for_fusion = [name for name, value in {**own_kind, "kind": kind, "init": init}.items() if value is not None]
    if fuse and not_for_fusion:
        raise UsageError(
            "a fusion is made of its adapters and has no kind of its own",
            found=", ".join(map(argument, not_for_fusion)),
            fix=f"leave it out, or leave {argument('fuse')} out",
        )
    check_head({**given, "class_weights": class_weights, "fuse": fuse or None})
    check_thresholds(given.get("thresholds", ()))
    columns = Columns(text, pair, label, start)
    columns.check(given.get("task", DEFAULT_TYPE))
    if kind is None or isinstance(kind, str):
        chosen = make_kind(kind or _DEFAULT_KIND, own_kind)
    elif own_kind:
        raise UsageError("options are those of a kind that is named", found=", ".join(map(argument, own_kind)))
    else:
        chosen = kind
    require("torch", "torch", "training")
    require("accelerate", "torch", "training")
    import numpy as np

    from adapter_export.sites.site_map import SITE_MAP_KEY
    from adapter_export.torch_backend import attach as bases
    from adapter_export.torch_backend.train.data import TrainingData, balanced
    from adapter_export.torch_backend.train.init_adapter import fresh_adapter, relative_change, with_prior
    from adapter_export.torch_backend.train.language import LanguageFiles, check_causal, read_language
    from adapter_export.torch_backend.train.measure import cosine_apart
    from adapter_export.torch_backend.train.media_examples import MediaExamples
    from adapter_export.torch_backend.train.record import TrainingSettings, training_record
    from adapter_export.torch_backend.train.task_files import read_task
    from adapter_export.torch_backend.train.train_loop import answered, evaluate
    from adapter_export.torch_backend.train.train_loop import train as learn

    settings = TrainingSettings(**own_options(given, LoopOptions), **fusion_settings(fusion), metric=metric)
    engine = engine_for(path, device, precision, log_to, threads)
    if not engine.first:
        progress, on_note = None, lambda _: None
    partial = checkpoints_of(path, resume=resume, restart=restart)
    members = load_members(fuse, base.path if isinstance(base, Base) else Path(base))
    opened = open_trainable(base, site_map, trust_pickle=trust_pickle)
    torch_base = opened.torch
    writing = given.get("task") == CAUSAL_LM
    if not writing:
        check_no_cache(opened)
    sites = opened.sites.complete
    held_out = (0.1 if validation is None else validation) if validation_data is None else Path(validation_data)
    tested = None if test_data is None else Path(test_data)
    words, columns = source_of_rows(opened, given, columns, tokenizer=tokenizer, max_tokens=max_tokens, writing=writing)
    if writing:
        end = _end_token(opened, words, given.get("end_token"))
        passages = LanguageFiles(
            Path(data), held_out, tested, columns, end, given.get("packing", False), skip_incomplete
        )
        rows = read_language(passages, words, opened.inputs, settings.seed)
    else:
        files = task_files(given, None, words, (Path(data), held_out, tested), columns, skip_incomplete)
        rows = read_task(files, words, tuple(record.name for record in opened.inputs), settings.seed)
    check_rows(opened, rows)
    tell(rows.notes, on_note)
    title = name or (path.resolve().name if path is not None else "fusion" if members else chosen.name)
    head = None if writing else fresh_head(given, rows, sites.width, paired=pair is not None)
    head, started = as_own(opened, head) if head is not None and given.get("head") == "own" else (head, {})
    learned: list[str] | None = None
    if members and head is not None:
        first, learned = fused(opened, members, fusion, title, head, settings.seed)
        start = f"the fresh fusion of {quoted(adapter.name for adapter in members)}"
    else:
        scheme, seed = init or chosen.scheme, settings.seed
        first = fresh_adapter(chosen, sites, name=title, base=opened.fingerprint, scheme=scheme, seed=seed, head=head)
        start = f"`{scheme}`"
    if TASK_TYPES[rows.problem].starts_at_prior:
        first = with_prior(first, rows.training.answers)
    first = replace(first, weights={**first.weights, **started})
    model = bases.attach(torch_base, first, sites=sites, learned=learned)
    if writing:
        check_causal(model, cast("LanguageExamples", rows.training))
    else:
        tell(check_padding(opened, rows, pads=model.pads), on_note)
    most = settings.batch_size if isinstance(rows.training, MediaExamples) else _ROWS_MEASURED
    measured = np.arange(min(most, len(rows.training.texts)))
    change = relative_change(model, next(rows.training.calls(measured, pads=model.pads)).inputs)
    if progress is not None:
        counts = f"{len(rows.training.texts):,} rows to learn from, {len(rows.validation.texts):,} to validate by"
        learnt = f"{len(rows.labels)} classes" if rows.labels else f"the task `{rows.problem}`"
        progress.prepared(f"{counts}, {learnt}; {start} moves the final hidden state by {change:.2%} at the start.")
    if class_weights is not None:
        by_label = balanced(rows.training, rows.labels) if class_weights == "balanced" else class_weights
        settings = replace(settings, class_weights=by_label)
    learn_from = TrainingData(rows.training, rows.validation)
    with engine.open() as accelerator:
        settings = replace(settings, precision=accelerator.mixed_precision)
        on_device = model.on(accelerator.device)
        result = learn(on_device, learn_from, settings, progress=progress, checkpoints=partial, accelerator=accelerator)
        test = None if rows.test is None else evaluate(on_device, rows.test, settings, accelerator)
        if rows.problem == "embedding":
            _, vectors, classes = answered(on_device, rows.validation, settings, accelerator)
            tell(collapsed(cosine_apart(vectors, classes)), on_note)
        writes = accelerator.is_main_process
    chosen_settings = {
        **(fusion if members else {"initialisation": scheme}),
        "initial_change": change,
        **({} if writing else {"padding_neutral": model.pads}),
        **own_kind,
        **read_so(given, columns, words),
        **({} if opened.given is None else {SITE_MAP_KEY: opened.given.digest}),
    }
    record = training_record(settings, chosen_settings, rows, result, test)
    if members:
        record = composition_record({**record, **first.training}, members)
    adapter = model.to_adapter(training=record)
    if path is not None and writes:
        _write(adapter, path, result, force=force)
    return adapter


def collapsed(cosine: float) -> Iterator[str]:
    """Yield a note if rows of different labels have vectors that are all alike, by their mean cosine."""
    if cosine > _ALIKE:
        yield (
            f"the vectors are all alike: of rows with different labels the mean cosine is {cosine:.4f}, so "
            f"they tell nothing apart; give a smaller {argument('learning_rate')}, or more {argument('epochs')}"
        )


def attach(
    model: Module | Base | PathLike,
    adapter: Adapter | PathLike | None = None,
    *,
    kind: str = "houlsby",
    labels: Sequence[str] | None = None,
    pooling: Literal["mean", "first"] = "mean",
    head: Head | None = None,
    init: str | None = None,
    seed: int = 0,
    learned: Collection[str] | None = None,
    example_inputs: Inputs | None = None,
    axes: AxisNames | None = None,
    site_map: PathLike | None = None,
    **options: Any,
) -> AttachedAdapter:
    """Attach an adapter for a training loop of your own; when the block ends, the model is as it was.

    ::

        with ae.attach(model, kind="houlsby", bottleneck=64, labels=["bad", "good"]) as adapter:
            optimizer = torch.optim.AdamW(adapter.learned().values(), lr=1e-3)
            ...                       # model(**batch).logits, any loss, backward, step
            adapter.save("reviews")

    Your own module runs as always, with its `forward` and its dropout; everything in it but the adapter is frozen. It
    is compared with its captured graph first, at every site. What it returns, if that is a dict or an output of
    transformers, gets the head's result as `logits`. Of a base, the object that is returned is the model:
    `adapter(**inputs)`.

    Args:
        model: your module, with float32 weights on the CPU (move it when the adapter is attached); or a torch base.
        adapter: an adapter to train on; a fresh one if none is given.
        kind: of a fresh adapter: what is computed, and where.
        labels: of a fresh adapter: the classes of its head.
        pooling: what that head reads, the mean of the tokens or the first one.
        head: of a fresh adapter: a head of another look, in the place of that one.
        init: of a fresh adapter: how its weights are drawn; by kind.
        seed: of these weights.
        learned: the adapter's tensors that learn; all if not given.
        example_inputs: of a module: by name, or in the order of the arguments of `forward`; tokens, images or sound by
            their usual names need none.
        axes: of these inputs: the dynamic axes, as `capture` takes them.
        site_map: a file with sites that override or complete those that are found; a `Base` has its own.
        options: what is free in the kind, such as `bottleneck`, `rank`, `dropout`.

    Raises:
        UsageError: an option that the kind does not have, or inputs that are not those of the module.
        BaseModelError: torch cannot export the module; `NoSitesError`: a site lies inside a `forward`, where no hook
            reaches it: train on the captured base.
        AdapterError: the adapter does not fit.
    """
    require("torch", "torch", "training")
    from adapter_export.format.site_map_json import read_site_map
    from adapter_export.sites.site_map import SITE_MAP_KEY
    from adapter_export.torch_backend import attach as bases
    from adapter_export.torch_backend.hooks import attach_to_module
    from adapter_export.torch_backend.train.init_adapter import fresh_adapter

    opened = open_base(model, site_map=site_map) if isinstance(model, str | Path | Base) else None
    given = opened.given if opened is not None else None if site_map is None else read_site_map(Path(site_map))

    def make(sites: SiteMap, fingerprint: str) -> Adapter:
        if adapter is not None:
            return load_adapter(adapter) if isinstance(adapter, str | Path) else adapter
        fresh = fresh_adapter(
            make_kind(kind, options),
            sites,
            name="adapter",
            base=fingerprint,
            scheme=init,
            seed=seed,
            labels=labels,
            pooling=pooling,
            head=head,
        )
        return replace(fresh, training={SITE_MAP_KEY: None if given is None else given.digest})

    if opened is None:
        return attach_to_module(
            cast("Module", model), make, example_inputs=example_inputs, axes=axes, site_map=given, learned=learned
        )
    sites = opened.sites.complete
    return bases.attach(opened.torch, make(sites, opened.fingerprint), sites=sites, learned=learned)


def own_options(given: Mapping[str, Any], options: type) -> dict[str, Any]:
    """Return those of the given options that a `TypedDict` has."""
    return {name: given[name] for name in options.__annotations__ if name in given}


def check_known(call: str, given: Mapping[str, Any], options: type) -> None:
    """Refuse arguments that a call does not have."""
    strangers = [name for name in given if name not in options.__annotations__]
    if strangers:
        raise UsageError(f"`{call}` has no such argument", found=", ".join(map(argument, strangers)))


def check_apart(**both: Any) -> None:
    """Refuse two arguments that exclude each other."""
    if all(value is not None and value is not False for value in both.values()):
        raise UsageError(f"{' and '.join(map(argument, both))} exclude each other", fix="give one of them")


def check_head(given: Mapping[str, Any]) -> None:
    """Refuse options that do not go with the task or with the other options of the head."""
    task, layers = given.get("task", DEFAULT_TYPE), given.get("head_layers", 0)
    if task not in LEARNT:
        expected = quoted(LEARNT)
        raise UsageError("unknown problem type", found=f"`{task}`", expected=expected)
    if given.get("head", "fresh") not in ("fresh", "own"):
        raise UsageError("unknown start of a head", found=f"`{given['head']}`", expected="`fresh` or `own`")
    looks = [name for name in _LOOKS if name in given and given.get("head") == "own"]
    if looks:
        raise UsageError(
            "the base head is as it is",
            found=", ".join(map(argument, looks)),
            fix=f"leave it out, or leave {argument('head', 'own')} out",
        )
    headless = [*_LOOKS, "head", "thresholds", "prefix", "truncation", "class_weights", "fuse"]
    for names, belongs, whose in (
        (
            headless,
            task != CAUSAL_LM,
            "the base itself gives the next token, and no head and no fusion is trained for it",
        ),
        (["packing", "end_token"], task == CAUSAL_LM, f"only `{CAUSAL_LM}` learns whole texts"),
    ):
        strange = [name for name in names if given.get(name) is not None]
        if strange and not belongs:
            raise UsageError(whose, found=", ".join(map(argument, strange)), fix="leave it out")
    unfit = [] if layers else ["head_width", "head_activation"]
    kind = TASK_TYPES[task]
    unfit += [] if kind.is_vector else ["vector_width", "l2_normalise", "prefix"]
    unfit += [] if kind.pools else ["pooling"]
    unfit += [] if kind.has_thresholds else ["thresholds"]
    for option in unfit:
        if option in given:
            raise UsageError(
                f"{argument(option)} does not go with the head that is asked for",
                found=f"the task `{task}` and {layers} dense layers",
                fix=f"leave it out, or give another {argument('task')} or {argument('head_layers')}",
            )
    for option in ("head_width", "vector_width"):
        at_least_1(option, given.get(option, 1))


def fresh_head(given: Mapping[str, Any], rows: TextTask, width: int, *, paired: bool) -> Head:
    """Return the head that the options ask for, for what the data hold, with the record of its task."""
    from adapter_export.graph.heads import HeadOptions, make_head
    from adapter_export.torch_backend.train.media_examples import MediaExamples

    options = HeadOptions(
        pooling=given.get("pooling", "mean"),
        dense=given.get("head_layers", 0),
        activation=given.get("head_activation", "tanh"),
        dropout=given.get("head_dropout", 0.0),
        projection="vector_width" in given,
        l2_normalise=given.get("l2_normalise", False),
    )
    kind = TASK_TYPES[rows.problem]
    labels = rows.labels if kind.has_labels else ()
    assert kind.has_head
    thresholds = thresholds_for(labels, given.get("thresholds", ()))
    if isinstance(rows.training, MediaExamples):
        record = rows.training.source.media.record
        task = Task(rows.problem, labels, thresholds=thresholds, input=record.medium, processor=record.digest)
    else:
        task = Task(
            rows.problem,
            labels,
            activation=kind.trained_activation,
            thresholds=thresholds,
            input="pair" if paired else "text",
            max_tokens=rows.training.tokenizer.max_tokens,
            truncation=rows.training.side,
            tokenizer=rows.training.tokenizer.digest,
            prefix=given.get("prefix", ""),
        )
    numbers = rows.numbers or given.get("vector_width", 1)
    return make_head(task, width=width, numbers=numbers, hidden=given.get("head_width"), options=options)


def as_own(base: Base, fresh: Head) -> tuple[Head, Weights]:
    """Return the base head for the task of a fresh one, and its tensors, classes in the order of the data."""
    from adapter_export.graph.adapter import HEAD
    from adapter_export.graph.heads import embedding_facts
    from adapter_export.graph.tasks import CLASSES

    own, wanted = base.base_head, fresh.task
    if own is None or own.head is None or own.head.task is None or wanted is None:
        found = f"; {base.notes[0]}" if base.notes else ""
        raise UsageError(
            "the base has no head of its own that a training could start from",
            where=argument("head", "own"),
            found=f"no head with a task{found}",
            fix="leave it out, and the head starts at random",
        )
    head, task = own.head, own.head.task
    if task.type != wanted.type or set(task.labels) != set(wanted.labels) or _results(head) != _results(fresh):
        raise UsageError(
            "the base head answers another question than the data",
            where=argument("head", "own"),
            found=f"a head for `{task.type}`, {', '.join(task.labels) or _results(head)}",
            expected=f"`{wanted.type}`, {', '.join(wanted.labels) or _results(fresh)}",
            fix="rename the labels in the data, or let the head start at random",
        )
    order = [task.labels.index(label) for label in wanted.labels]
    weights = {
        f"{HEAD}.{name}": own.weights[f"{HEAD}.{name}"][..., order]
        if order and shape[-1] == CLASSES
        else own.weights[f"{HEAD}.{name}"]
        for name, shape in head.graph.parameters.items()
    }
    facts = embedding_facts(head.graph) if wanted.kind.is_vector else {}
    return replace(head, task=replace(wanted, **facts)), weights


def _results(head: Head) -> int:
    """How many numbers a head gives; 0 for a vector, which may have any width."""
    from adapter_export.graph.tasks import CLASSES

    return head.widths.get(CLASSES, 0)


def source_of_rows(
    base: Base,
    given: Mapping[str, Any],
    columns: Columns,
    *,
    tokenizer: PathLike | None,
    max_tokens: int | None,
    writing: bool = False,
) -> tuple[Any, Columns]:
    """Return what makes a base's inputs of rows, a `Tokenizer` or a `MediaSource`, and the columns that it reads."""
    if base.media is None or writing:
        return _tokenizer(base, tokenizer, max_tokens), columns
    from adapter_export.torch_backend.train.media_examples import MediaSource

    medium = base.media.record.medium
    _check_texts_alone(medium, given, pair=columns.pair, tokenizer=tokenizer, max_tokens=max_tokens)
    require("transformers", "hf", "training on images or audio")
    named = replace(columns, text=medium if columns.text == "text" else columns.text)
    return MediaSource.of(base.media, base.inputs), named


def task_files(
    given: Mapping[str, Any],
    task: Task | None,
    words: Any,
    paths: tuple[Path, Path | float, Path | None],
    columns: Columns,
    skip_incomplete: bool,
) -> TaskFiles:
    """Return the files to learn from, to validate and to test by, as a task reads them, or as the options say it."""
    from adapter_export.torch_backend.train.task_files import TaskFiles

    if task is None:
        side = given.get("truncation", getattr(words, "side", "right"))
        problem, prefix = given.get("task", DEFAULT_TYPE), given.get("prefix", "")
        return TaskFiles(*paths, columns, problem, skip_incomplete, prefix, side)
    return TaskFiles(*paths, columns, task.type, skip_incomplete, task.prefix, task.truncation, task.labels)


def read_so(given: Mapping[str, Any], columns: Columns, words: Any) -> dict[str, Any]:
    """Return how rows are read, and by what head they are answered, for the record of a training."""
    from adapter_export.text import Tokenizer

    return {
        **own_options(given, TaskOptions),
        **{name: value for name, value in asdict(columns).items() if value is not None},
        **({"max_tokens": words.max_tokens, "tokenizer": words.digest} if isinstance(words, Tokenizer) else {}),
    }


def _check_texts_alone(medium: str, given: Mapping[str, Any], **arguments: object) -> None:
    """Refuse what is for texts in a training on images or audio."""
    of_texts = [name for name, value in arguments.items() if value is not None]
    of_texts += [name for name in ("truncation", "prefix") if name in given]
    if of_texts:
        found = ", ".join(map(argument, of_texts))
        raise UsageError(f"is for texts, and the model reads `{medium}`", found=found, fix="leave it out")


def check_rows(base: Base, rows: TextTask) -> None:
    """Refuse a tokenizer whose tokens the model does not have."""
    texts: list[Any] = [] if base.media is not None else [*rows.parts.values()]
    for record in base.inputs if texts else ():
        highest = max(part.highest.get(record.name, 0) for part in texts)
        if record.limit is not None and highest >= record.limit:
            raise UsageError(
                "the tokenizer makes tokens that the model does not have",
                where=f"`{record.name}`",
                found=f"the id {highest}",
                expected=f"0 to {record.limit - 1}",
                fix=f"give the tokenizer of the model: {argument('tokenizer')}",
            )


def check_padding(base: Base, rows: TextTask, *, pads: bool) -> Iterator[str]:
    """Refuse texts of a length that the base does not take, as bundles do; yield a note if no row is padded."""
    fit = base.fit if base.media is None else None
    if fit is not None:
        for name, part in rows.parts.items():
            with within(f"the {name} data"):
                for tokens in sorted(part.sizes):
                    fit(tokens, pads=pads)
    if not pads and len(rows.training.sizes | rows.validation.sizes) > 1:
        yield "padding changes results: only rows of one length share a call"


def checkpoints_of(output: Path | None, *, resume: bool, restart: bool) -> Path | None:
    """Return where an interrupted run is kept, beside the output."""
    if output is None:
        if resume or restart:
            raise UsageError("only a run with an output can be interrupted and go on", fix=f"give {argument('output')}")
        return None
    partial = output.with_name(f"{output.name}.partial")
    if restart:
        shutil.rmtree(partial, ignore_errors=True)
    if resume and not partial.exists():
        fix = f"leave {argument('resume')} out to begin one"
        raise TrainingError("there is no interrupted run", where=partial, fix=fix)
    return partial


def engine_for(
    output: Path | None, device: str | None, precision: str | None, log_to: Sequence[str], threads: int | None
) -> Engine:
    """Return what a training runs on; logs stand beside the output."""
    import torch

    from adapter_export.torch_backend.train.devices import Engine

    if threads is not None:
        torch.set_num_threads(at_least_1("threads", threads))
    logs = Path("adapter-export.logs") if output is None else output.with_name(f"{output.name}.logs")
    return Engine(device, precision, tuple(log_to), logs)


def open_trainable(model: Base | PathLike, site_map: PathLike | None = None, *, trust_pickle: bool = False) -> Base:
    """Open a base; one that torch cannot train is refused before it is opened."""
    base = unopened(model, OpenOptions(site_map, trust_pickle))
    base.check_trainable()
    _ = base.torch
    return base


def check_no_cache(base: Base) -> None:
    """Rows of a table have no past, and a head reads the hidden state, not the next word."""
    caches = [record.name for record in base.inputs if record.role == "cache"]
    if caches:
        raise BaseModelError(
            "was captured with its cache, as it generates, and rows of a table have no past",
            where=base.path,
            found=f"{len(caches)} inputs such as `{caches[0]}`",
            expected="the bare model",
            fix=f"train it to write: {argument('task', CAUSAL_LM)}; or, for a head, capture it again without "
            f"{argument('with_cache', True)}",
        )


def _end_token(base: Base, tokenizer: Tokenizer, token: str | None) -> int | None:
    """Return the id of the token that ends a text; none if nobody knows it."""
    if token is None:
        ends = base.torch.generation.end
        return ends[0] if ends else None
    found = tokenizer.id_of(token)
    if found is None:
        where = argument("end_token")
        raise UsageError("the tokenizer has no such token", where=where, found=f"`{token}`", expected="such as `</s>`")
    return found


def _tokenizer(base: Base, folder: PathLike | None, max_tokens: int | None) -> Tokenizer:
    from adapter_export.text import Tokenizer

    known = base.max_tokens
    limit = max_tokens or (MAX_TOKENS if known is None else min(MAX_TOKENS, known))
    if known is not None and limit > known:
        what = f"{argument('max_tokens')} is more than the model takes"
        raise UsageError(what, found=limit, expected=f"at most {known}")
    if folder is not None:
        return Tokenizer.from_folder(folder, limit, base.fit)
    if base.tokenizer is None:
        fix = f"name the folder of its `tokenizer.json`: {argument('tokenizer')}"
        if base.inputs[0].dtype == "float32":
            fix = "capture it again from a folder with a `preprocessor_config.json` that says how they become its input"
            raise UsageError("the model does not say how it reads images or audio", where=base.path, fix=fix)
        raise UsageError("the model brings no tokenizer", where=base.path, fix=fix)
    return Tokenizer.from_json(base.tokenizer, limit, base.fit)


def _write(adapter: Adapter, output: Path, result: TrainingResult, *, force: bool) -> None:
    """Write the adapter and its learning curve, and forget the checkpoints."""
    from adapter_export.format.adapter_files import write_adapter
    from adapter_export.torch_backend.train.objectives import OBJECTIVES
    from adapter_export.torch_backend.train.record import CURVE_FILE, draw_curve

    write_adapter(adapter, output, force=force)
    loss_name = OBJECTIVES[adapter.training["task"]].loss_name
    draw_curve(result, f"{adapter.name} ({adapter.kind})", output / CURVE_FILE, loss_name=loss_name)
    shutil.rmtree(output.with_name(f"{output.name}.partial"), ignore_errors=True)
