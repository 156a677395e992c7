"""Check the sizes of modules and functions against the house's budgets; exit 1 and name what is over."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("bulkgrpc", "workers", "tools")
GENERATED = ("bulkgrpc/v1", "bulkgrpc/wire/v1")
MODULE_LINES_MAX = 400
FUNCTION_LINES_MAX = 60


def over_budget(path: Path) -> list[str]:
    """Return a line for the module and for each of its functions that is too long."""
    text = path.read_text()
    name = path.relative_to(ROOT)
    lines = text.count("\n")
    found = [f"{name}: {lines} lines, at most {MODULE_LINES_MAX}"] if lines > MODULE_LINES_MAX else []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            size = (node.end_lineno or node.lineno) - node.lineno + 1
            if size > FUNCTION_LINES_MAX:
                found.append(f"{name}:{node.lineno}: {node.name} has {size} lines, at most {FUNCTION_LINES_MAX}")
    return found


def main() -> None:
    """Check every module that is not generated."""
    paths = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    own = [path for path in paths if not str(path.relative_to(ROOT)).startswith(GENERATED)]
    if found := [line for path in own for line in over_budget(path)]:
        raise SystemExit("\n".join(found))


if __name__ == "__main__":
    main()
