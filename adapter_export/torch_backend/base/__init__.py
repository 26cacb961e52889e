"""Torch bases: archives, screened before torch reads them; capture, signature, export to ONNX."""
