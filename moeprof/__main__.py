"""`python -m moeprof`."""

from moeprof.cli.main import script

script()
