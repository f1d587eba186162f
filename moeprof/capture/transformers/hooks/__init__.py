"""What listens while a model runs: hooks, operators in compiled code, and their session."""
