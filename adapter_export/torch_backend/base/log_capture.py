"""Capture torch's log lines and warnings, and disable its stack traces meanwhile."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pickle import PickleError  # noqa: TID251 only the error class, which torch lets through

from torch._export.error import ExportError, InternalError
from torch._export.verifier import SpecViolationError
from torch.fx import config

_LIBRARIES = ("torch", "onnxscript", "onnx_ir")

LIBRARY_ERRORS: tuple[type[Exception], ...] = (
    *(ExportError, InternalError, PickleError, SpecViolationError, ArithmeticError, AssertionError, AttributeError),
    *(ImportError, LookupError, NameError, OSError, RuntimeError, SyntaxError, TypeError, ValueError),
)
"""Errors that torch raises for an unsupported model or file; few have specific classes."""


class _Collector(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@contextmanager
def captured_logs(*, lines: bool = False) -> Iterator[list[logging.LogRecord]]:
    """Hide the log lines and warnings of torch and its exporter; yields the list of captured lines.

    Stack traces of traced operators are disabled unless `lines` of source are needed, which saves a twentieth of the
    time.
    """
    collector = _Collector()
    # some torch modules have their own handlers
    known = [*_LIBRARIES, *(name for name in logging.root.manager.loggerDict if name.startswith("torch."))]
    loggers = [logger for logger in map(logging.getLogger, known) if logger.handlers or logger.name in _LIBRARIES]
    before = [(logger.handlers, logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.handlers, logger.propagate = [collector], False
    traceless = getattr(config, "do_not_emit_stack_traces", False)  # torch before 2.12 does not have this option
    config.do_not_emit_stack_traces = not lines
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield collector.records
    finally:
        config.do_not_emit_stack_traces = traceless
        for logger, (handlers, propagate) in zip(loggers, before, strict=True):
            logger.handlers, logger.propagate = handlers, propagate


def first_line(error: BaseException) -> str:
    """Return the first non-empty line of an error's message, or the name of its class."""
    lines = (line.strip() for line in str(error).splitlines())
    text = next((line for line in lines if line), type(error).__name__)
    return text if len(text) <= 300 else f"{text[:300]}…"
