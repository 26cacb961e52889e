"""Tables of any length through a bundle, shard by shard."""
