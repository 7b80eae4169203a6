"""How the suite is divided: a folder is one worker's, so that its labs and fixtures exist once."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parent

# The long ones first: workers take groups in this order, and the end should find both busy.
LONGEST = ("acceptance", "cluster", "bootstrap", "cli", "lab", "agent", "runtime", "fabric")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def group(item: pytest.Item) -> str:
        return item.path.relative_to(ROOT).parts[0]

    def rank(item: pytest.Item) -> int:
        name = group(item)
        return LONGEST.index(name) if name in LONGEST else len(LONGEST)

    for item in items:
        item.add_marker(pytest.mark.xdist_group(group(item)))
    items.sort(key=rank)
