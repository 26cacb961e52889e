"""Bundles, adapters, models and tables on the Hugging Face Hub and in OCI registries; needs the extra `hub`."""

from adapter_export.plugin import Plugin

_COMMANDS = "adapter_export.plugins.hub.commands"

PLUGIN = Plugin(
    "hub",
    commands={"serving": (f"{_COMMANDS}.push", f"{_COMMANDS}.pull")},
    calls={"pull": f"{_COMMANDS}.pull", "push": f"{_COMMANDS}.push"},
    parts={"addresses": ("adapter_export.plugins.hub.remote_addresses",)},
)
