/** Turns ONNX Runtime's telemetry off where nothing else is set. It has to be imported before onnxruntime-node. */
process.env.ORT_DISABLE_TELEMETRY ??= "1";
