"""Which of the base's modules a config of PEFT means, to notice tensors that were lost."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from adapter_export.interop.peft.options import Names, Options


def targeted(options: Options, paths: Iterable[str]) -> Iterator[str]:
    """Those of the module paths that the config means (`peft.tuners.tuners_utils.check_target_module_exists`)."""
    for path in paths:
        if _named(options.excluded, path) or _in_saved(options, path):
            continue
        if _named(options.targets, path) and (isinstance(options.targets, str) or _in_layers(options, path)):
            yield path


def _named(names: Names, path: str) -> bool:
    if isinstance(names, str):
        return re.fullmatch(names, path) is not None
    return any(path == name or path.endswith(f".{name}") for name in names or ())


def _in_saved(options: Options, path: str) -> bool:
    return any(f".{name}." in f".{path}." for name in options.saved)


def _in_layers(options: Options, path: str) -> bool:
    """Whether the first number behind the name of a list of layers is one of the named layers."""
    if not options.layers:
        return True
    patterns = [rf"(?:^|.*?\.){name}\.(?P<index>\d+)\." for name in options.layer_lists]
    found = (re.match(pattern, path) for pattern in patterns or [r".*?\.[^.]*\.(?P<index>\d+)\."])
    return any(match is not None and int(match["index"]) in options.layers for match in found)
