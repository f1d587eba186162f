"""The routers of a model: finding them, reading what they return, and scores beside it."""
