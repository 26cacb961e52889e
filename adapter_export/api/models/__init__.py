"""Bases: opened or captured, their sites, a drawing of where adapters act."""
