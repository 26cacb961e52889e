"""ONNX bases: opened without reading their weights, checked, converted."""
