"""Everything moeprof raises on purpose, each with the exit code the command line ends with.

MoeprofError                1   something failed
├── InputError              2   a file, value or flag is wrong; the message names it and the remedy
│   ├── TraceError          2   a recording is missing, cut, corrupted, or lacks what was asked
│   ├── ModelError          2   a model configuration cannot be read
│   └── MissingExtraError   2   an optional package is not installed; names the pip line
├── CheckFailedError        3   a check the user asked for did not hold
└── InfeasibleError         4   the deployment does not fit or the target is out of reach
"""

from __future__ import annotations


class MoeprofError(Exception):
    """Base of all errors raised on purpose; `exit_code` is what the command line returns."""

    exit_code = 1


class InputError(MoeprofError):
    """A file, a value or a flag is wrong. The message names it and says what to do."""

    exit_code = 2


class TraceError(InputError):
    """A recording is missing, damaged, or does not hold what was asked of it."""


class ModelError(InputError):
    """A model configuration is missing or cannot be understood."""


class MissingExtraError(InputError):
    """An optional dependency is not installed."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(
            f"this needs the package '{package}', which is not installed: "
            f"pip install 'moeprof[{extra}]'"
        )


class CheckFailedError(MoeprofError):
    """A check that the user asked for did not hold."""

    exit_code = 3


class InfeasibleError(MoeprofError):
    """The deployment does not fit, or the target cannot be reached."""

    exit_code = 4
