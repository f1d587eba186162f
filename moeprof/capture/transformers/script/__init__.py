"""`capture run`: every model of a user's script, in one process or several."""
