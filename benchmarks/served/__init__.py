"""Measured TTFT and TPOT of served models, and how well a predictor holds on rows it never saw."""
