"""How tests start Chromium."""

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
"""It stays on this machine; without a network, what it does in the background takes a tenth of a processor. To optimise
ONNX Runtime in WebAssembly takes longer than what the page of a test would save. WebGPU runs on SwiftShader, without a
GPU."""
