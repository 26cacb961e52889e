"""Routes of HTTP by API: each module adds those of one family to the app."""
