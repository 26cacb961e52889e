"""Convert a base to another precision or fuse its operators, before slots are inserted."""
