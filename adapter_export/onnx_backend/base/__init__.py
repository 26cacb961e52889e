"""ONNX bases: opened without reading their weights, validated, and prepared for slots."""
