"""A plug-in of adapter-export: the kind `deep`, and the command `formula`."""

from adapter_export.plugin import Plugin

PLUGIN = Plugin(
    "deep",
    commands={"adapters": ("deep_adapters.formula",)},
    calls={"formula": "deep_adapters.formula"},
    parts={"kinds": ("deep_adapters.deep_kind",)},
)
