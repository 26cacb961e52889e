"""Adapters from and to the formats of other libraries."""

from adapter_export.plugin import Plugin

_COMMANDS = "adapter_export.plugins.formats.commands"

PLUGIN = Plugin(
    "formats",
    commands={"adapters": tuple(f"{_COMMANDS}.{name}" for name in ("pack", "import_", "doctor", "export"))},
    calls={
        "doctor": f"{_COMMANDS}.doctor",
        "export": f"{_COMMANDS}.export",
        "import_adapterhub": f"{_COMMANDS}.import_.adapterhub",
        "import_finetuned": f"{_COMMANDS}.import_.finetuned",
        "import_peft": f"{_COMMANDS}.import_.peft",
        "pack": f"{_COMMANDS}.pack",
    },
)
