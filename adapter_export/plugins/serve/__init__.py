"""HTTP server: bundles behind the protocols that clients speak; needs the extra `serve`."""

from adapter_export.plugin import Plugin

_SERVE = "adapter_export.plugins.serve.commands.serve"

PLUGIN = Plugin("serve", commands={"serving": (_SERVE,)}, calls={"serve": _SERVE})
