"""Golden data: what a bundle must answer, stored with it, and how well it tells faults apart."""
