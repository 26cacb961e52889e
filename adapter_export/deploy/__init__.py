"""Files that Triton, KServe, Ray Serve and Docker need around a bundle: configuration, and programs on the runtime."""
