"""Documents of public projects give what Docker Compose v5.6.1 gave for them, as data."""

import json
from collections.abc import Iterable
from typing import Any

import pytest

from compose.cases import FOLDER, projected, table
from orchestra.compose.errors import ComposeErrors
from orchestra.compose.printed import printed

# Cases whose documents name files that the table does not hold.
INCOMPLETE = {"1", "2", "3", "4", "5", "7", "8", "19", "20", "21", "22", "54", "109", "110", "111"}
HOME = "/srv"


def differences(want: Any, got: Any, path: str = "") -> Iterable[str]:
    """Each place where two pieces of data differ."""
    if isinstance(want, dict) and isinstance(got, dict):
        for key in sorted(want.keys() | got.keys()):
            if key not in want or key not in got:
                yield f"{path}.{key}: {want.get(key, 'absent')!r} != {got.get(key, 'absent')!r}"
            else:
                yield from differences(want[key], got[key], f"{path}.{key}")
    elif isinstance(want, list) and isinstance(got, list) and len(want) == len(got):
        for index, pair in enumerate(zip(want, got)):
            yield from differences(*pair, f"{path}[{index}]")
    elif want != got or type(want) is not type(got):
        yield f"{path}: {want!r} != {got!r}"


def check(case: dict[str, Any], folder: str) -> None:
    files = case["files"]
    names = ("compose.yaml",) if "compose.yaml" in files else tuple(sorted(files))
    env = {"HOME": HOME, **case["env"]}
    if not case["ok"]:
        with pytest.raises(ComposeErrors):
            projected(files, env, names=names, folder=folder)
        return
    result = json.loads(json.dumps(printed(projected(files, env, names=names, folder=folder))))
    if case["json"] is None:
        return  # Docker Compose's own printer failed on this one
    want = json.dumps(case["json"]).replace("{{CWD}}", folder)
    # One case looks a folder up: the place where the table was made.
    want = want.replace("/tmp/orc/inlkm9ofm4r", HOME).replace("/tmp/orc", HOME)
    assert list(differences(json.loads(want), result)) == []


@pytest.mark.parametrize("case", table("documents"), ids=lambda c: c["case"])
def test_a_document_gives_what_docker_compose_gives(case: dict[str, Any]) -> None:
    if case["case"] in INCOMPLETE:
        with pytest.raises(ComposeErrors, match=r"cannot read|not found"):
            check({**case, "ok": True}, f"{HOME}/{case['case']}")
    else:
        check(case, f"{HOME}/{case['case']}")


@pytest.mark.parametrize("case", table("merges"), ids=lambda c: c["case"])
def test_files_merge_as_docker_compose_merges_them(case: dict[str, Any]) -> None:
    check(case, f"{HOME}/t")


@pytest.mark.parametrize("case", table("volume-specs"), ids=lambda c: c["spec"])
def test_a_short_volume_is_the_long_one_of_docker_compose(case: dict[str, Any]) -> None:
    spec = json.dumps(case["spec"])
    text = f"services:\n  web:\n    image: x\n    volumes: [{spec}]\nvolumes: {{name: {{}}}}\n"
    if not case["ok"]:
        with pytest.raises(ComposeErrors):
            projected(text)
        return
    volumes = printed(projected(text))["services"]["web"]["volumes"]
    want = [{"volume": {}, **v} if v["type"] == "volume" else v for v in case["volumes"]]
    assert json.loads(json.dumps(volumes)) == want


def test_the_folder_of_the_tests_is_no_real_folder() -> None:
    assert FOLDER.startswith(HOME)
