"""Torch bases: archives, screened before torch sees them; capture, signature, export to ONNX."""
