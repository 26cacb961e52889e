"""`train`: its arguments match the options of the command, and errors use Python's names."""

from __future__ import annotations

import re
from typing import Any

import pytest
from click.testing import CliRunner

import adapter_export as ae
from adapter_export.cli.main import main
from adapter_export.commands.training.train import TRAIN_OPTIONS
from adapter_export.errors import UsageError
from adapter_export.option import Option
from adapter_export.training.loop.settings import LoopSpec


def words(hint: Any) -> str:
    (said,) = hint.__metadata__
    return said.help if isinstance(said, Option) else said


def test_every_train_option_has_a_help_sentence() -> None:
    for name, hint, _ in TRAIN_OPTIONS.declared():
        assert re.search(r"[.\]]$", words(hint)), name


def test_the_defaults_of_the_loop_are_those_on_its_help_page() -> None:
    page = " ".join(CliRunner().invoke(main, ["train", "--help", "training"]).output.split())
    for name in ("batch_size", "learning_rate", "weight_decay", "cache_mb"):
        found = re.search(rf"--{name.replace('_', '-')} .*?\[default: (\S+)\]", page)
        assert found is not None, name
        assert float(found[1]) == getattr(LoopSpec(), name)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"epoch": 3}, "`train` has no such argument; found `epoch`"),
        ({"validation": 0.2, "validation_data": "dev.tsv"}, "`validation` and `validation_data` exclude each other"),
        ({"resume": True}, "only a run with an output can be resumed. Pass `output`"),
        ({"fuse": ["a"]}, "`fuse` must list two or more adapters"),
        ({"fusion_temperature": 3.0}, "this option applies only to a fusion; found `fusion_temperature`"),
        ({"fuse": ["a", "b"], "rank": 4}, "has no kind; found `rank`"),
        ({"bottleneck": 0}, "`bottleneck` is too small"),
        (
            {"kind": "lora", "bottleneck": 4},
            "kind `lora` has no such option; found `bottleneck`; expected `leave_out`, ",
        ),
        ({"kind": "dora"}, "`dora` cannot be expressed yet"),
        ({"task": "summary"}, "unknown problem type; found `summary`"),
        ({"task": "ranking"}, "`ranking` reads pairs of texts. Name the column of the second texts: `pair`"),
        ({"task": "token", "pair": "b"}, "`token` reads single texts, not pairs; found `b`. Omit `pair`"),
        (
            {"task": "multi_label", "thresholds": (0.5, 1.5)},
            "a threshold must be a probability; found 1.5; expected 0 to 1",
        ),
        ({"thresholds": (0.3,)}, "`thresholds` does not apply to this task and head"),
        ({"start": "s"}, "only answers to questions have a `start`"),
        ({"fuse": ["a", "b"], "fusion": "mean"}, "unknown fusion; found `mean`"),
    ],
)
def test_train_names_conflicting_arguments_as_python_does(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        ae.train("nowhere.pt", "nowhere.tsv", **arguments)
