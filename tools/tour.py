"""Write the tables of docs/tour.md: each module with the first sentence of its docstring.

`python tools/tour.py` rewrites the page; `--check` only says whether it is true (the tests use it).
The prose of the page is written by hand: only what stands between a package's two marker lines is
replaced, so a table cannot tell anything else than the code.
"""

import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "tour.md"
BLOCK = re.compile(r"(<!-- files: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


def table(package: str) -> str:
    """The files of one package as a Markdown list, the package's own sentence left out."""
    rows = []
    for path in sorted((ROOT / package).rglob("*.py")):
        if path.name == "__init__.py":
            continue
        text = ast.get_docstring(ast.parse(path.read_text())) or ""
        name = path.relative_to(ROOT / package)
        rows.append(f"- [`{name}`](../{path.relative_to(ROOT)}): {text.splitlines()[0]}\n")
    return "".join(rows)


def render(page: str) -> str:
    return BLOCK.sub(lambda found: found[1] + table(found[2]) + found[3], page)


def missing(page: str) -> list[str]:
    """Packages that have no table on the page."""
    shown = {found[2] for found in BLOCK.finditer(page)}
    packages = {f"orchestra/{p.parent.name}" for p in (ROOT / "orchestra").glob("*/__init__.py")}
    return sorted(packages - shown)


if __name__ == "__main__":
    before = PAGE.read_text()
    after = render(before)
    if gaps := missing(before):
        sys.exit(f"docs/tour.md: no table for {', '.join(gaps)}")
    if "--check" in sys.argv and after != before:
        sys.exit("docs/tour.md: tables are not what the code says; run tools/tour.py")
    PAGE.write_text(after)
