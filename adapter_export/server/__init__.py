"""An HTTP server for bundles: models by name, rows of many requests in one call, and routes between versions."""
