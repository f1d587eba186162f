"""Which request each row of a forward belongs to."""
