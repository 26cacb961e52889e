"""Text generation: tokens of decoders with their caches, and texts of these tokens; each row has its own adapter."""
