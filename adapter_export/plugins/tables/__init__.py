"""Answers to tables of any length, in shards, in one process or on a cluster."""

from adapter_export.plugin import Plugin

_RUN_MANY = "adapter_export.plugins.tables.commands.run_many"

PLUGIN = Plugin("tables", commands={"bundles": (_RUN_MANY,)}, calls={"run_many": _RUN_MANY})
