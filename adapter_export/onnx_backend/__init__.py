"""ONNX bases: opened, viewed as dataflow, given slots, quantized, and run as a reference."""
