"""`moeprof --help` beside `python -c "import typer"` and a bare interpreter.

python benchmarks/startup.py
"""

from __future__ import annotations

import subprocess
import sys

from timing import best_of


def run(*arguments: str) -> None:
    """One fresh interpreter."""
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)


def main() -> None:
    """Print seconds and the ratio."""
    seconds = best_of(
        9,
        help=lambda: run("-m", "moeprof", "--help"),
        typer=lambda: run("-c", "import typer"),
        bare=lambda: run("-c", "pass"),
    )
    print(f"moeprof --help   {seconds['help']:.3f} s")
    print(f"import typer     {seconds['typer']:.3f} s")
    print(f"bare interpreter {seconds['bare']:.3f} s")
    print(f"ratio to typer   {seconds['help'] / seconds['typer']:.2f}")


if __name__ == "__main__":
    main()
