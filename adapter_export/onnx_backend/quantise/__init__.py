"""A base in another precision or with fused operators, made before the slots go in."""
