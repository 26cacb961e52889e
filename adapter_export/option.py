"""How a parameter of a call is said on the command line, written where it stands: `Annotated[int, Option(…)]`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Option:
    """The words of an option; its type, its default and, mostly, its name are those of the parameter.

    Attributes:
        help: what it does; its default too, where the signature does not show one: `[default: 0.1]`.
        metavar: stands for the value in help pages, such as `FILE`; by type if not given. This and `choices` may be a
            function that returns it, where it comes from a module that takes long to import.
        flags: other names, with spaces between them: `-o` beside the parameter's name, `--json` in its place.
        choices: the values that it can have; those of a `Literal` if not given.
        least: the smallest number that it can be.
    """

    help: str = ""
    metavar: str | Callable[[], str] | None = None
    flags: str = ""
    choices: tuple[str, ...] | Callable[[], tuple[str, ...]] = ()
    least: int | None = None


TEXT = Option("The column of the texts; of paths to images or audio, `image` or `audio` if not given.", "COLUMN")
PAIR = Option("The column of the second texts, where rows are pairs.", "COLUMN")
LABEL = Option("The column of the labels.", "COLUMN")
START = Option("Of answers in a text: the column of their first characters, counted from 0.", "COLUMN")
GROUP = Option("Of a ranking: the column of what rows are ranked within; the texts if not given.", "COLUMN")
SKIP_INCOMPLETE = Option("Leave rows without text or label out, instead of stopping.")

SITE_MAP = Option(
    "Sites that override or complete those that are found; `sites --write-site-map` writes such a file.", "FILE"
)
TRUST_PICKLE = Option("Load a model archive that could run code. Only for files that you made yourself.")
VALIDATION = Option("The fraction of each class kept for validation.  [default: 0.1]", "FRACTION")
VALIDATION_DATA = Option("Validate by this file instead.", "FILE")
TOKENIZER = Option("Where `tokenizer.json` is; the model's own if not given.", "FOLDER")
METRIC = Option("The metric that decides which epoch is kept, or `loss`; by task if not given.", "NAME")
DEVICE = Option("`cpu`, `cuda`, `cuda:1`, `mps`, …; the best one there is if not given.", "NAME")
THREADS = Option("Processor threads; as many as torch takes if not given.", least=1)
