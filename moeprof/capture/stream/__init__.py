"""Layer streaming: a decoder layer at a time is read from disk, and all tokens pass through it."""
