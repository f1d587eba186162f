"""moeprof: record where a Mixture-of-Experts model sends its tokens, and what that means."""

__version__ = "0.1.0"
