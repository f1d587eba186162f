"""The router classes of the installed transformers, found in its sources.

So no new router of a new version passes unseen.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

CHOOSES = re.compile(r"topk\(|argmax\(|gather\(|sparsemixer\(")


@dataclass(frozen=True)
class RouterClass:
    """A class in a family's modeling module."""

    family: str
    name: str


@cache
def router_classes() -> tuple[RouterClass, ...]:
    """Of all families. A router knows of experts, chooses, and returns a tuple.

    Where a family has no such class, those that transformers itself takes router logits from.
    """
    found = []
    for family, source in _sources().items():
        if "expert" in source.lower() and CHOOSES.search(source):
            tree = ast.parse(source)
            names = [c.name for c in tree.body if isinstance(c, ast.ClassDef) and _is_router(c)]
            names = names or sorted(_registered(tree))
            found += [RouterClass(family, name) for name in names]
    return tuple(found)


def families_with_experts() -> set[str]:
    """Families with a module of fused experts: each must have a router class."""
    return {name for name, source in _sources().items() if "@use_experts_impl" in source}


def is_used(router: RouterClass) -> bool:
    """Whether any class of the family's module makes such a router."""
    source = _sources()[router.family]
    return len(re.findall(rf"\b{router.name}\(", source)) > 1  # one is its definition


@cache
def _sources() -> dict[str, str]:
    """The module that defines the models, by family."""
    import transformers

    files = Path(transformers.__file__).parent.glob("models/*/modeling_*.py")
    return {file.parent.name: file.read_text() for file in sorted(files)}


def _is_router(definition: ast.ClassDef) -> bool:
    source = ast.unparse(definition)
    if "expert" not in source.lower() or not CHOOSES.search(source):
        return False
    forward = [f for f in definition.body if isinstance(f, ast.FunctionDef) and f.name == "forward"]
    returns = [node for f in forward for node in ast.walk(f) if isinstance(node, ast.Return)]
    return any(isinstance(node.value, ast.Tuple) for node in returns)


def _registered(tree: ast.Module) -> set[str]:
    """Classes that stand under "router_logits" in `_can_record_outputs`."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                if isinstance(key, ast.Constant) and key.value == "router_logits":
                    found |= {n.id for n in ast.walk(value) if isinstance(n, ast.Name)}
    return found - {"OutputRecorder"}
