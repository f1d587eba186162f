"""From steps to rows of a trace, in the writer thread: what is traffic, and where it stands."""
