"""Each engine's own reader, written from its source, takes what we export."""
