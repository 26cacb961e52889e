"""Bases in ONNX: opened, seen as dataflow, given slots, quantised, and run as a reference."""
