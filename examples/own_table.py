"""Train on a spreadsheet's table, build and serve the bundle, and add a second adapter while the server runs.

    python examples/own_table.py FOLDER [MODEL]

FOLDER receives the tables, adapters and bundle; MODEL is a Hugging Face folder, by default that of the demo. The first
table is as Excel saves it (semicolons, Windows-1252), and three of its rows are faulty. The pages in docs/tutorial
explain what this prints.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import demo_data
from demo import adapter_export, heading, run, written

QUESTION = "How far is the moon?"
MESSAGE = "URGENT! You have won a 1000 cash prize. Call 09061701461 to claim."
ACCENTS = [("Where is the Café de Flore ?", "LOC"), ("Who wrote Où on va, papa ?", "HUM")]
FAULTY = ["What is a caldera ?;", "\xa0;NUM", "Who was Galileo ?"]
"""A row without a label, one whose text is a no-break space, and one with a single cell."""

PATIENCE = 60.0
"""Seconds that a server may take to start."""


def main(folder: Path, model: Path) -> None:
    began = time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    questions = demo_data.balanced([row for row in demo_data.trec() if row[1] != "ABBR"]) + ACCENTS
    lines = [f"{text.replace(';', ',')};{label}" for text, label in questions]
    heading("Your own table")
    save("questions.csv", "question;answer", [*lines[:5], *FAULTY, *lines[5:]])
    print(f"questions.csv: {len(lines) + len(FAULTY)} rows, with a semicolon between cells, in Windows-1252")

    heading("1. Capture a base, once")
    run("capture", model, "-o", "base.pt")
    heading("2. Train an adapter")
    refused(*training("questions", "question", "answer"))
    save("questions.csv", "question;answer", lines)
    print("\n(the three rows were taken out)\n")
    run(*training("questions", "question", "answer"))
    heading("3. Build a bundle")
    run("build", "base.pt", "--adapters", "questions", "-o", "bundle")
    heading("4. Is it whole, and right on this machine?")
    run("verify", "bundle")
    heading("5. The first answer")
    run("run", "bundle", "--adapter", "questions", "--text", QUESTION)
    print(f"\nFive commands and {time.monotonic() - began:.0f} s after the start.")

    heading("Serve it, and add a second adapter while it runs")
    with serving("bundle") as address:
        ask(address, "questions", QUESTION)
        save(
            "messages.csv", "message;spam", [f"{text};{label}" for text, label in demo_data.balanced(demo_data.spam())]
        )
        run(*training("messages", "message", "spam"))
        run("add", "bundle", "messages", "--against", "base.pt")
        post(f"{address}/v2/repository/models/bundle/load", {})
        print("the server has the new bundle, in the same process")
        for name, text in (("questions", QUESTION), ("messages", MESSAGE)):
            ask(address, name, text)
        refused_request(address, QUESTION)


def save(name: str, header: str, lines: Sequence[str]) -> None:
    Path(name).write_text("\r\n".join([header, *lines, ""]), encoding="cp1252", newline="")


def training(name: str, text: str, label: str) -> tuple[object, ...]:
    learning = ("--kind", "pfeiffer", "--bottleneck", "16", "--epochs", "6", "--learning-rate", "0.002")
    return ("train", "base.pt", "--data", f"{name}.csv", "--text", text, "--label", label, *learning, "-o", name)


def refused(*command: object) -> None:
    """Show a command that must fail, and its exit code."""
    print(f"$ {written(command)}")
    try:
        adapter_export([str(part) for part in command])
    except SystemExit as done:
        if done.code:
            print(f"exit code {done.code}")
            return
    sys.exit("error: the faulty table was accepted.")


@contextmanager
def serving(bundle: str) -> Iterator[str]:
    """Start a server in a process of its own, and stop it at the end."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = ("serve", bundle, "--port", port)
    print(f"$ {written(command)}")
    program = [sys.executable, "-m", "adapter_export", *map(str, command)]
    server = subprocess.Popen(program, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}"
    try:
        wait_for(f"{address}/v2/health/ready", server)
        yield address
    finally:
        server.terminate()
        server.wait()


def wait_for(address: str, server: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end and server.poll() is None:
        try:
            urllib.request.urlopen(address, timeout=1).close()
        except (urllib.error.URLError, TimeoutError):
            time.sleep(0.2)
        else:
            return
    sys.exit("error: the server did not start.")


def ask(address: str, adapter: str, text: str) -> None:
    asked = {"model": adapter, "text": text}
    print(f"$ curl {address}/answer -d '{json.dumps(asked)}'")
    (answer,) = post(f"{address}/answer", asked)["rows"]
    print(f"{answer['label']}  {answer['probability']:.3f}")


def refused_request(address: str, text: str) -> None:
    """Show that a request without an adapter is refused."""
    try:
        post(f"{address}/answer", {"text": text})
    except urllib.error.HTTPError as error:
        print(f"without a model: HTTP {error.code}, {json.load(error)['error']}")
    else:
        sys.exit("error: a request without an adapter was answered.")


def post(address: str, document: object) -> dict[str, list[dict[str, object]]]:
    request = urllib.request.Request(address, json.dumps(document).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=PATIENCE) as response:
        body = response.read()
    return json.loads(body) if body else {}


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2] if len(sys.argv) == 3 else demo_data.base_folder()).resolve())
