"""The whole of moeprof on a small model that ships with it."""

from moeprof.demo.run import DemoResult, run_demo

__all__ = ["DemoResult", "run_demo"]
