"""Bundles in ONNX Runtime, with numpy and onnxruntime alone."""
