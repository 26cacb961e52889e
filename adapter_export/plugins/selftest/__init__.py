"""Self-test of `check`: faults planted in a copy of a bundle, and how many of them it detects."""

from adapter_export.plugin import Plugin

_SELF_TEST = "adapter_export.plugins.selftest.planted_faults"

PLUGIN = Plugin("selftest", calls={"self_test": _SELF_TEST}, parts={"flags": (_SELF_TEST,)})
