"""An ONNX graph as a neutral dataflow graph."""
