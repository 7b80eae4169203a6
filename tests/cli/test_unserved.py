"""Words and flags of compose that are not served yet name what does the same; no lab is needed."""

from __future__ import annotations

import pytest

from orchestra.cli import main, unserved


@pytest.mark.parametrize("word", sorted(unserved.VERBS))
def test_a_verb_that_is_not_served_names_what_is(
    word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert word not in main.VERBS
    with pytest.raises(SystemExit) as ended:
        main.main([word, "--some", "thing"])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith(f"orchestra: {word!r} is not served yet: ")
    assert "`orchestra " in said


@pytest.mark.parametrize(("word", "flag"), sorted(unserved.FLAGS))
def test_a_flag_that_is_not_served_names_what_is(
    word: str, flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main.main([word, flag])
    assert ended.value.code == 2
    assert f"orchestra {word}: error: {flag} is not served yet: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("up web", "a stack is brought up and taken down whole"),
        ("up --frob", "unrecognized arguments: --frob"),
        ("log", "unknown command 'log'; did you mean 'logs'?"),
        ("frobnicate", "unknown command 'frobnicate'; see `orchestra --help`"),
        ("scale", "the following arguments are required: SERVICE=N"),
    ],
)
def test_a_line_that_cannot_be_understood_ends_with_2(
    line: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main.main(line.split())
    assert ended.value.code == 2
    assert said in capsys.readouterr().err
