"""Python API: one function per command, and the objects they return. `adapter_export` exports them.

torch, onnx and numpy are imported inside the functions, so that `import adapter_export` stays fast.
"""
