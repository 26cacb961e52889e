"""Export a frozen base model and its adapters to one ONNX graph with swappable adapter weights."""

__version__ = "0.1.0"
