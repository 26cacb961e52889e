"""`adapter-export train`: a table of labelled texts becomes an adapter."""

from __future__ import annotations

from typing import Any

import click
from click.core import ParameterSource

from adapter_export.cli.fusion_options import fusion_options, take_fusion_options
from adapter_export.cli.head_options import head_options, take_head_options
from adapter_export.cli.kind_options import TRAINED, kind_option, names_of, with_options
from adapter_export.cli.options import (
    PATH,
    examples,
    force_option,
    json_option,
    output_option,
    site_map_option,
    trust_pickle_option,
)
from adapter_export.cli.training import MAX_TOKENS, Call, run
from adapter_export.errors import UsageError
from adapter_export.graph.initialise import SCHEMES


@click.command(
    epilog=examples(
        "adapter-export train model.pt --data train.tsv --text text --label label --kind houlsby -o a",
        "adapter-export train model.pt --data train.csv --validation-data dev.csv --test-data test.csv \\",
        "    --kind pfeiffer --bottleneck 32 --epochs 2 -o sentiment",
        "adapter-export train HF_FOLDER --data rows.jsonl --tokenizer HF_FOLDER --kind parallel -o b",
        "adapter-export train model.pt --data train.tsv --kind lora --on query,value --rank 8 --alpha 16 -o c",
        "adapter-export train model.pt --data ner.jsonl --task token_classification --text tokens --label tags -o ner",
        "adapter-export train model.pt --data scores.csv --task regression --head-layers 1 -o grade",
        "adapter-export train model.pt --data train.tsv --fuse a,b,c --temperature 50 -o fused",
    )
)
@click.argument("model", type=PATH)
@click.option("--data", type=PATH, required=True, metavar="FILE", help="Labelled texts: csv, tsv or jsonl in UTF-8.")
@click.option("--text", default="text", show_default=True, metavar="COLUMN", help="The column of the texts.")
@click.option("--label", default="label", show_default=True, metavar="COLUMN", help="The column of the labels.")
@click.option("--skip-incomplete", is_flag=True, help="Leave rows without text or label out, instead of stopping.")
@click.option(
    "--validation", type=float, metavar="FRACTION", help="The part of each class kept for validation.  [default: 0.1]"
)
@click.option("--validation-data", type=PATH, metavar="FILE", help="Validate by this file instead.")
@click.option("--test-data", type=PATH, metavar="FILE", help="Measure the finished adapter on this file.")
@click.option(
    "--tokenizer", type=PATH, metavar="FOLDER", help="Where `tokenizer.json` is; the model's own if not given."
)
@click.option("--max-tokens", type=int, help=f"Cut texts there.  [default: {MAX_TOKENS}, or less if the model says so]")
@kind_option(default="houlsby", show_default=True)
@with_options(TRAINED)
@click.option(
    "--init",
    type=click.Choice(tuple(SCHEMES)),
    help="How the first weights are drawn; by kind if not given, `small_normal` for `houlsby`.",
)
@fusion_options
@head_options
@click.option("--epochs", type=int, default=4, show_default=True, help="Passes over the data, at most.")
@click.option("--batch-size", type=int, default=32, show_default=True, help="Rows in a step.")
@click.option("--learning-rate", type=float, default=1e-3, show_default=True, help="The highest one.")
@click.option("--warmup", type=float, default=0.1, show_default=True, help="The part of the steps that warms up.")
@click.option("--weight-decay", type=float, default=0.01, show_default=True, help="On the projections.")
@click.option("--patience", type=int, default=3, show_default=True, help="Stop after so many epochs without a better.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of weights, split, order and dropout.")
@click.option("--threads", type=click.IntRange(min=1), help="Processor threads; as many as torch takes if not given.")
@click.option("--name", help="What users will call it; the output's name if not given.")
@click.option("--resume", is_flag=True, help="Go on with an interrupted run, and stop if there is none.")
@click.option("--restart", is_flag=True, help="Forget an interrupted run.")
@output_option("The adapter folder")
@site_map_option
@force_option
@trust_pickle_option
@json_option
def train(**given: Any) -> None:
    """Train an adapter for MODEL, a torch archive or a Hugging Face folder, on a table of labelled texts.

    For `--task token_classification` the column of the texts holds words and that of the labels a label for each word:
    lists in a jsonl file, or words with spaces between them. For `--task regression` the labels are numbers, one or a
    list. An embedding learns from labels: texts of one label shall be near each other.

    The model stays as it is. The epoch that does best on the validation rows is kept: the best accuracy, the macro-F1
    of tokens, the least error of numbers, the accuracy of nearest neighbours. A run that was interrupted goes on when
    the same command is given again, and ends with the same weights.

    With `--fuse`, the named adapters stay as they are, and what is learnt is a new head and how each token weighs them
    (AdapterFusion), or one weight for each of them.
    """
    head, fusion = take_head_options(given), take_fusion_options(given)
    options = {name: given.pop(name) for name in names_of(TRAINED)}
    kind_options = {name: value for name, value in options.items() if value is not None}
    if fusion:
        _refuse_with_fusion([*kind_options, *(name for name in ("kind", "init") if _was_given(name))])
    run(Call(kind_options=kind_options, head_options=head, fusion_options=fusion, **given))


def _was_given(name: str) -> bool:
    """Whether an option stands on the command line, and not for its default."""
    return click.get_current_context().get_parameter_source(name) is not ParameterSource.DEFAULT


def _refuse_with_fusion(names: list[str]) -> None:
    if names:
        raise UsageError(
            "a fusion is made of its adapters and has no kind of its own",
            found=", ".join(f"`--{name.replace('_', '-')}`" for name in names),
            fix="leave it out, or leave `--fuse` out",
        )
