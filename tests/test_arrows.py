"""Who may import whom: the map's arrows, checked on the source of every module."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "orchestra"

ARROWS = {
    "model": set(),
    "wire": set(),
    "transport": set(),
    "compose": {"model"},
    "plan": {"model"},
    "linux": set(),
    "image": {"wire", "linux", "model"},
    "runtime": {"linux", "model"},
    "fabric": {"linux", "model"},
    "build": {"image", "model"},
    "api": {"wire", "model"},
    "agent": {"runtime", "fabric", "image", "build", "api", "model", "plan", "linux"},
    "controller": {"plan", "compose", "api", "image", "transport", "model"},
    "cli": {"api", "compose", "testing", "model", "cli"},
    "testing": None,  # everything
}
# The processes' entry points, and what an operator's own login does on hosts
# (docs/decisions/0006-the-command-line-logs-in-at-hosts.md).
EXCEPTIONS = {"cli/serve.py": {"agent", "controller"}, "cli/hosts.py": {"controller"}}
PURE = {"os", "trio", "socket", "subprocess", "time", "random", "logging"}
PURE_MODULES = ("model/", "plan/", "compose/", "fabric/render.py")
IMPURE_ON_PURPOSE = {"compose/find.py"}


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found |= {node.module}
            if node.module == "orchestra":
                found |= {f"orchestra.{alias.name}" for alias in node.names}
    return found


MODULES = sorted(p for p in ROOT.rglob("*.py") if len(p.relative_to(ROOT).parts) > 1)


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_module_imports_only_along_the_arrows(path: Path) -> None:
    relative = str(path.relative_to(ROOT))
    package = path.relative_to(ROOT).parts[0]
    allowed = ARROWS[package]
    if allowed is None:
        return
    allowed = allowed | {package} | EXCEPTIONS.get(relative, set())
    ours = {m.split(".")[1] for m in imports(path) if m.startswith("orchestra.")}
    assert ours - {"__version__"} <= allowed, f"{relative} imports {sorted(ours - allowed)}"


@pytest.mark.parametrize(
    "path",
    [p for p in MODULES if str(p.relative_to(ROOT)).startswith(PURE_MODULES)],
    ids=lambda p: str(p.relative_to(ROOT)),
)
def test_pure_packages_import_nothing_that_acts(path: Path) -> None:
    if str(path.relative_to(ROOT)) in IMPURE_ON_PURPOSE:
        return
    assert not {m.split(".")[0] for m in imports(path)} & PURE


def test_every_module_opens_with_a_paragraph() -> None:
    bare = [
        str(p.relative_to(ROOT)) for p in MODULES if not ast.get_docstring(ast.parse(p.read_text()))
    ]
    assert not bare, bare
