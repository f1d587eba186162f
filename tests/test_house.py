"""The house itself: which way imports run, what is public, and that every command is documented."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import moeprof
from moeprof.cli.main import COMMANDS

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "moeprof"

# Each folder is one step; it may import what stands after it on its line (and errors, result,
# quantity, threads, which everything may).
MAY_IMPORT = {
    "model": set(),
    "trace": {"model"},
    "capture": {"trace", "model"},
    "analysis": {"trace", "model"},
    "hardware": set(),
    "cache": {"analysis", "hardware", "trace", "model"},
    "placement": {"analysis", "hardware", "trace", "model"},
    "offload": {"placement", "cache", "analysis", "hardware", "trace", "model"},
    "synth": {"cache", "analysis", "hardware", "trace", "model"},
    "projection": {"offload", "placement", "cache", "analysis", "hardware", "trace", "model"},
}
MAY_IMPORT["live"] = {"capture", "cache"} | MAY_IMPORT["cache"]
MAY_IMPORT["sweep"] = {"projection"} | MAY_IMPORT["projection"]
MAY_IMPORT["report"] = {"synth", "sweep", "live"} | MAY_IMPORT["sweep"]
MAY_IMPORT["demo"] = {"report", "capture"} | MAY_IMPORT["report"]
MAY_IMPORT["doctor"] = {"capture", "trace", "model"}
MAY_IMPORT["cli"] = {"doctor", "demo"} | MAY_IMPORT["demo"]
FOUNDATION = {"errors", "result", "quantity", "threads", "__version__"}
# Engines: in capture and probe, inside functions.
HEAVY = {"torch", "transformers", "vllm", "sglang", "llama_cpp"}
# .pt files are read or written there, and torch alone is imported
TORCH_FILES = {
    PACKAGE / "trace" / "formats" / "torch_files.py",
    PACKAGE / "placement" / "exports" / "ktransformers.py",
}
LAZY = {"matplotlib", "scipy", "networkx", "numba", "jinja2"}  # where they are used


def sources() -> Iterator[tuple[str, Path]]:
    """(folder, file) of every module below a folder of the package."""
    for file in sorted(PACKAGE.glob("*/**/*.py")):
        yield file.relative_to(PACKAGE).parts[0], file


def imported(tree: ast.AST) -> Iterator[str]:
    """Dotted names of everything that is imported anywhere in `tree`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            if node.module == "moeprof":
                yield from (f"moeprof.{alias.name}" for alias in node.names)
            else:
                yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def imported_at_start(file: Path) -> set[str]:
    """Top-level packages that importing `file` imports, but for type checking."""
    tree = ast.parse(file.read_text())
    statements = [node for node in tree.body if not isinstance(node, ast.If)]
    found = (name for node in statements for name in imported_shallow(node))
    return {name.split(".")[0] for name in found}


def imported_shallow(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Import | ast.ImportFrom):
        yield from imported(ast.Module([node], []))


@pytest.mark.parametrize(("folder", "file"), list(sources()), ids=lambda v: getattr(v, "stem", v))
def test_imports_run_one_way(folder: str, file: Path) -> None:
    allowed = MAY_IMPORT[folder] | FOUNDATION | {folder}
    names = (name.split(".") for name in imported(ast.parse(file.read_text())))
    steps = {parts[1] for parts in names if parts[0] == "moeprof" and len(parts) > 1}
    assert steps <= allowed


@pytest.mark.parametrize(("folder", "file"), list(sources()), ids=lambda v: getattr(v, "stem", v))
def test_heavy_packages_are_imported_where_they_are_used(folder: str, file: Path) -> None:
    names = {name.split(".")[0] for name in imported(ast.parse(file.read_text()))}
    if folder != "capture" and file.parent.name != "probe":
        assert names & HEAVY <= ({"torch"} if file in TORCH_FILES else set())
    at_start = imported_at_start(file)
    assert not at_start & HEAVY
    # A file of cache policies is compiled hooks throughout and is imported when one is asked for.
    assert not at_start & LAZY or file.name == "kernels.py" or file.parent.name == "policies"


def test_every_folder_has_its_line_in_the_import_order() -> None:
    folders = {file.parent.name for file in PACKAGE.glob("*/__init__.py")}
    assert folders == set(MAY_IMPORT)


def test_all_is_what_is_public() -> None:
    assert sorted(moeprof.__all__) == sorted({*moeprof._HOMES, "__version__"})
    for name in moeprof.__all__:
        assert getattr(moeprof, name) is not None
    with pytest.raises(AttributeError):
        _ = moeprof.nonsense  # type: ignore[attr-defined]


def test_importing_is_light() -> None:
    packages = HEAVY | LAZY | {"typer", "numpy", "pyarrow", "pydantic", "httpx2", "anyio"}
    code = (
        "import sys, moeprof, moeprof.cli.main as m; m.main(['--help']);"
        f"heavy = {packages} & set(sys.modules);"
        "sys.exit(', '.join(heavy) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_command_is_documented() -> None:
    reference = (ROOT / "docs" / "cli.md").read_text()
    for verb in COMMANDS:
        assert f"## moeprof {verb}\n" in reference


def test_every_command_has_a_file_and_every_file_a_command() -> None:
    frame = {"__init__", "main", "answer", "deployments", "limits", "progress", "ranges"}
    frame |= {"recordings", "traces"}
    files = {file.stem for file in (PACKAGE / "cli").glob("*.py")} - frame
    assert files == {module for module, _ in COMMANDS.values()}


def test_each_error_has_its_exit_code() -> None:
    from moeprof import errors

    drawn = errors.__doc__ or ""
    for name, kind in vars(errors).items():
        if isinstance(kind, type) and issubclass(kind, errors.MoeprofError):
            line = next(line for line in drawn.splitlines() if name in line.split())
            assert f" {kind.exit_code} " in line
