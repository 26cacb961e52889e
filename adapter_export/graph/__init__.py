"""The language: adapters as small graphs of named ops with named parameters."""
