"""What a team does with bundles beyond building and proving them."""
