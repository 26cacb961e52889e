"""ONNX bases: opened without reading their weights, checked, made ready for slots."""
