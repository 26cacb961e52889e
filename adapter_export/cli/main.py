"""`adapter-export`: the group of all commands."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping

import click

from adapter_export.cli.commands import found_commands
from adapter_export.cli.group import Entry, LazyGroup
from adapter_export.version import __version__


def _old(module: str, name: str) -> Callable[[], click.Command]:
    def make() -> click.Command:
        command: click.Command = getattr(importlib.import_module(f"adapter_export.cli.{module}"), name)
        return command

    return make


def _moved() -> click.Command:
    raise NotImplementedError


# commands that are not yet in `adapter_export.commands`
_OLD: Mapping[str, Entry] = {
    "capture": Entry("Make a model archive from a Hugging Face folder.", _moved, "Models"),
    "sites": Entry("Show where adapters can act in a model.", _moved, "Models"),
    "plan": Entry("Say what adapters would cost in a model, before training.", _moved, "Training"),
    "train": Entry("Train an adapter on a table of labelled texts.", _moved, "Training"),
    "sweep": Entry("Train adapters of many settings, and compare them.", _moved, "Training"),
    "lint": Entry("Look for the classic mistakes in an adapter.", _moved, "Training"),
    "drop": Entry("Say what an adapter loses without its lowest layers.", _moved, "Training"),
    "distil": Entry("Let a smaller model learn from one with an adapter.", _moved, "Training"),
    "pack": Entry("Make an adapter from plain tensors of any framework.", _moved, "Adapters"),
    "import": Entry("Make an adapter of one that another library trained.", _moved, "Adapters"),
    "compose": Entry("Make one adapter of several: stacked, averaged, fused.", _moved, "Adapters"),
    "merge": Entry("Write a model with an adapter inside its weights.", _moved, "Adapters"),
    "build": Entry("Export a model and its adapters as one bundle.", _moved, "Bundles"),
    "add": Entry("Add adapters to a bundle, without a new export.", _moved, "Bundles"),
    "remove": Entry("Remove adapters from a bundle.", _moved, "Bundles"),
    "check": Entry("Prove that a bundle computes what it should.", _moved, "Bundles"),
    "verify": Entry("Show that a bundle is whole and computes right here.", _moved, "Bundles"),
    "sign": Entry("Sign a bundle: say who made it.", _moved, "Bundles"),
    "evaluate": Entry("Measure an adapter of a bundle on labelled rows.", _moved, "Bundles"),
    "compare": Entry("Compare adapters, bundles and models on the same labelled rows.", _moved, "Bundles"),
    "run": Entry("Run a bundle on texts, images, audio or arrays.", _old("bundles.run", "run"), "Bundles"),
    "inspect": Entry("Show what is in a bundle, an adapter or a model.", _moved, "Bundles"),
    "serve": Entry("Serve bundles by HTTP, an adapter for each request.", _moved, "Serving"),
    "bench": Entry("Measure how to serve a bundle on this machine.", _moved, "Serving"),
    "ship": Entry("Write what Triton, KServe, Ray or Docker needs to serve a bundle.", _moved, "Serving"),
    "push": Entry("Send a bundle or an adapter to a hub or a registry.", _moved, "Serving"),
    "pull": Entry("Take a bundle or an adapter from a hub or a registry.", _moved, "Serving"),
}

COMMANDS: Mapping[str, Entry] = {**_OLD, **found_commands()}


@click.group(
    cls=LazyGroup,
    table=COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="\b\nFrom a model to a service:\n"
    "  adapter-export capture HF_FOLDER -o model.pt\n"
    "  adapter-export train model.pt --data train.tsv --kind houlsby --bottleneck 64 -o a\n"
    "  adapter-export build model.pt --adapters a,b -o bundle\n"
    "  adapter-export check bundle --against model.pt\n"
    "  adapter-export run bundle --adapter a --text 'How far is the moon?'\n"
    "\n\b\nExit codes: 0 done, 1 a comparison failed, 2 wrong call, 3 bad input, 4 nothing was compared,\n"
    "5 a bug, 130 interrupted. With `--json` every command writes one document to stdout, errors too.",
)
@click.version_option(__version__, prog_name="adapter-export", message="%(prog)s %(version)s")
@click.option("--debug", is_flag=True, help="Show tracebacks and the warnings of libraries.")
def main(debug: bool) -> None:
    """Export a frozen model and its adapters to one ONNX graph with swappable adapter weights."""
