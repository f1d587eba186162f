"""Who says what comes next: one file a kind, all of them by name in `names.py`."""
