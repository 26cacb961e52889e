"""ONNX: bases, sites, slots, bundles."""
