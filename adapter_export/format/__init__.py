"""Files on disk: adapters, bundle manifests, their schemas; strict to read, atomic to write."""
