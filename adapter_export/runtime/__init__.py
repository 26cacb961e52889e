"""Run bundles: numpy and onnxruntime are all that is needed."""

from adapter_export.decoding import Decoding
from adapter_export.graph.tasks.answers import Prediction
from adapter_export.runtime.answerer import AnsweredRow, Answerer, Reading, Row
from adapter_export.runtime.batches import ProgressBar, Request
from adapter_export.runtime.bundle import Bundle
from adapter_export.runtime.self_check import check_session
from adapter_export.runtime.session import Session

__all__ = [
    "AnsweredRow",
    "Answerer",
    "Bundle",
    "Decoding",
    "Prediction",
    "ProgressBar",
    "Reading",
    "Request",
    "Row",
    "Session",
    "check_session",
]
