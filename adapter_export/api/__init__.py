"""The Python API: one function for each command, and the objects that they return. `adapter_export` exports them.

Whatever needs torch, onnx or numpy is imported inside the functions, so that `import adapter_export` costs nothing.
"""
