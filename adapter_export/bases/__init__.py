"""Open or capture bases, find their sites, and draw where adapters act."""
