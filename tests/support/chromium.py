"""Flags to start Chromium in tests."""

QUIET = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-features=BackForwardCache",
    "--js-flags=--liftoff-only",
    "--enable-unsafe-webgpu",
    "--use-webgpu-adapter=swiftshader",
    "--enable-features=Vulkan,WebGPU",
    "--use-vulkan=swiftshader",
    "--disable-vulkan-surface",
)
"""Chromium stays offline; its background work would take a tenth of a processor.

Optimizing ONNX Runtime in WebAssembly takes longer than a test page would save. WebGPU runs on SwiftShader, without a
GPU.
"""
