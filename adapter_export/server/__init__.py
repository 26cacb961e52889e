"""HTTP server for bundles: models by name, batches across requests, and routes between versions."""
