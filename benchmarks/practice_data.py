"""Split the labelled texts of docs/project/practice.md without leaks; `make setup` installs the package with them.

    python benchmarks/practice_data.py [FOLDER]           write all of them as tables

That page names the sources. Texts that differ only in case, digits, spaces and punctuation count as one text. Texts
with two labels are dropped, and all sentences of one article or one product review go into one part.
"""

from __future__ import annotations

import csv
import json
import random
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

import demo_data

DOMAINS = ("movie", "nyt", "tweets", "amazon")
SETS = ("trec", "trec50", "sentiment", "spam", *DOMAINS)
MOST = {"train": 1000, "validation": 250, "test": 1000}
"""Rows of each part at most, so that a training takes a minute or two on one core."""

_SHARES = {"train": 0.6, "validation": 0.15, "test": 0.25}
_CLEAR_RATING = 1.0
_MOST_LABELS = 50


@dataclass(frozen=True)
class Row:
    """A text, its label or mean rating, and its other columns in one document."""

    text: str
    label: str
    source: str


@cache
def rows(name: str) -> list[Row]:
    """All rows of a set, each text once."""
    if name in ("trec", "trec50"):
        return _distinct(_questions(fine=name == "trec50"))
    if name == "spam":
        return _distinct(_messages())
    if name == "sentiment":
        clear = [row for row in _rated("movie") if abs(float(row.label)) >= _CLEAR_RATING]
        return _distinct(Row(row.text, "positive" if float(row.label) > 0 else "negative", row.source) for row in clear)
    return _distinct(_rated(name), labels_agree=False)


def parts(name: str, seed: int = 0, most: dict[str, int] | None = None) -> dict[str, list[Row]]:
    """Split into `train`, `validation` and `test` by whole documents, with a maximum number of rows each."""
    by_source: dict[str, list[Row]] = {}
    for row in rows(name):
        by_source.setdefault(row.source, []).append(row)
    sources = sorted(by_source)
    random.Random(seed).shuffle(sources)
    total = sum(map(len, by_source.values()))
    found: dict[str, list[Row]] = {part: [] for part in _SHARES}
    part = iter(_SHARES)
    current = next(part)
    for source in sources:
        if len(found[current]) >= _SHARES[current] * total:
            current = next(part)
        found[current] += by_source[source]
    return {part: _first(kept, (most or MOST)[part]) for part, kept in found.items()}


def _first(kept: list[Row], most: int) -> list[Row]:
    """The first rows, among them two of each of at most fifty labels, so that a rare one can be learnt."""
    places: dict[str, list[int]] = {}
    for place, row in enumerate(kept):
        places.setdefault(row.label, []).append(place)
    rare = [place for found in places.values() for place in found[:2]] if len(places) <= _MOST_LABELS else []
    chosen = dict.fromkeys([*rare, *range(len(kept))])
    return [kept[place] for place in sorted(list(chosen)[:most])]


def write(name: str, folder: Path, most: dict[str, int] | None = None) -> dict[str, int]:
    """Write `train.tsv`, `validation.tsv` and `test.tsv` with a maximum number of rows each; return their sizes."""
    folder.mkdir(parents=True, exist_ok=True)
    found = parts(name, most=most)
    for part, kept in found.items():
        with (folder / f"{part}.tsv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, delimiter="\t", lineterminator="\n")
            writer.writerow(["text", "label"])
            writer.writerows((row.text, row.label) for row in kept)
    return {part: len(kept) for part, kept in found.items()}


def human_ceiling(domain: str) -> float:
    """Correlate each rater with the mean of the others (Pearson's r), every text with the same weight."""
    one, others, weight = [], [], []
    for ratings in _ratings(domain).values():
        found = np.array(ratings, dtype=float)
        one.append(found)
        others.append((found.sum() - found) / (len(found) - 1))
        weight.append(np.full(len(found), 1 / len(found)))
    covariance = np.cov(np.concatenate(one), np.concatenate(others), aweights=np.concatenate(weight))
    return float(covariance[0, 1] / np.sqrt(covariance[0, 0] * covariance[1, 1]))


def _questions(*, fine: bool) -> Iterator[Row]:
    for line in demo_data.file_of("trec").read_text(encoding="utf-8").splitlines():
        label, _, text = line.partition(" ")
        if text:
            yield Row(text, label if fine else label.partition(":")[0], text)


def _messages() -> Iterator[Row]:
    """The file holds lines of two kinds, `7,0,text` and `ham<TAB>text`; a message may go on in the next line."""
    whole = demo_data.file_of("spam").read_text(encoding="utf-8-sig")
    starts = re.compile(r"^(?:\d+,([01]),|(ham|spam)\t)", re.MULTILINE)
    found = list(starts.finditer(whole))
    for start, following in zip(found, [*(one.start() for one in found[1:]), len(whole)], strict=True):
        text = whole[start.end() : following].strip()
        if start[1] and text.startswith('"'):
            text = text[1:].removesuffix('"').replace('""', '"')
        yield Row(text, "spam" if start[1] == "1" or start[2] == "spam" else "ham", text)


def _rated(domain: str) -> Iterator[Row]:
    ratings = _ratings(domain)
    for line in demo_data.file_of(domain).read_text(encoding="utf-8").splitlines()[1:]:
        number, _, text = line.split("\t")
        yield Row(text, f"{np.mean(ratings[number]):.4f}", number.partition("_")[0])


@cache
def _ratings(domain: str) -> dict[str, list[int]]:
    lines = demo_data.file_of(f"{domain} ratings").read_text(encoding="utf-8-sig").splitlines()
    cells = (line.split("\t") for line in lines if line.strip())
    return {number: json.loads(ratings) for number, _, _, ratings in cells}


def _distinct(found: Iterable[Row], *, labels_agree: bool = True) -> list[Row]:
    """Return the first text of each group with equal letters, without groups whose labels differ."""
    by_letters: dict[str, list[Row]] = {}
    for row in found:
        letters = "".join(character for character in row.text.casefold() if character.isalpha())
        if letters:
            by_letters.setdefault(letters, []).append(row)
    alike = (same for same in by_letters.values() if not labels_agree or len({row.label for row in same}) == 1)
    return [Row(" ".join(same[0].text.split()), same[0].label, same[0].source) for same in alike]


def main(folder: str = "practice-data") -> None:
    """Verify the files, write every set, and print what there is of it."""
    demo_data.verify()
    for name in SETS:
        counts = write(name, Path(folder) / name)
        whole = rows(name)
        print(f"{name:<10} {len(whole):>6} texts: " + ", ".join(f"{count} {part}" for part, count in counts.items()))


if __name__ == "__main__":
    main(*sys.argv[1:])
