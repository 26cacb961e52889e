"""Evaluation, comparison, planning, search and speed of adapters."""

from adapter_export.plugin import Plugin

_COMMANDS = "adapter_export.plugins.lab.commands"

PLUGIN = Plugin(
    "lab",
    commands={
        "training": tuple(f"{_COMMANDS}.{name}" for name in ("plan", "sweep", "lint", "drop", "distil")),
        "bundles": (f"{_COMMANDS}.evaluate", f"{_COMMANDS}.compare"),
        "serving": (f"{_COMMANDS}.bench",),
    },
    calls={
        name: f"{_COMMANDS}.{name}"
        for name in ("bench", "compare", "distil", "drop", "evaluate", "lint", "plan", "sweep")
    },
)
