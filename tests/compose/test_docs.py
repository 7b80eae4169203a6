"""docs/compose.md says of every attribute what the code does."""

import re
from pathlib import Path

from compose.test_attributes import HONOURED
from orchestra.compose.support import REFUSED, WARNED

TEXT = (Path(__file__).parents[2] / "docs" / "compose.md").read_text()
ROW = re.compile(r"^\| `(\w+)` \| (.*?) ?\|$", re.MULTILINE)


def rows(heading: str) -> dict[str, str]:
    """The rows of the table whose head begins with `heading`."""
    table = TEXT.partition(f"\n| {heading} |")[2].partition("\n\n")[0]
    return dict(ROW.findall(table))


def test_the_page_names_exactly_the_attributes_that_are_honoured() -> None:
    assert rows("honoured").keys() == HONOURED.keys()


def test_the_page_says_of_what_is_refused_what_the_error_says() -> None:
    assert rows("refused") == REFUSED


def test_the_page_says_of_what_has_no_effect_what_the_warning_says() -> None:
    assert rows("without effect, with a warning") == WARNED
