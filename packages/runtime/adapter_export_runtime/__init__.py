"""Run the bundles of `adapter-export`: numpy and onnxruntime are all that is needed.

::

    from adapter_export_runtime import Bundle

    texts = Bundle.open("bundle").texts()  # with the extra `text`
    (answer,) = texts.answer(["How far is the moon?"], "trec")

What can go wrong is in `adapter_export_runtime.errors`.
"""

import os

# ONNX Runtime 1.29 and later report models and machines to Microsoft, unless this is set before it is imported
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

from adapter_export_runtime import errors
from adapter_export_runtime.runtime import Bundle, Prediction, ProgressBar, Request, Session, check_session
from adapter_export_runtime.version import __version__

__all__ = ["Bundle", "Prediction", "ProgressBar", "Request", "Session", "__version__", "check_session", "errors"]
