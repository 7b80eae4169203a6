"""Completion, as each shell does it: the real shells source the real scripts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from orchestra.cli import completion, main

BIN = Path(sys.executable).parent


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "compose.yaml").write_text("services: {web: {image: a}, worker: {image: a}}\n")
    cluster = tmp_path / "config" / "clusters" / "prod"
    cluster.mkdir(parents=True)
    (cluster / "cluster.json").write_text(
        f'{{"name": "prod", "inventory": "{cluster}/inventory.yaml"}}'
    )
    (cluster / "inventory.yaml").write_text("nodes: [{name: n1, address: 192.0.2.1}]\n")
    (tmp_path / "config" / "current").write_text("prod\n")
    return tmp_path


def environment(folder: Path) -> dict[str, str]:
    return {
        **os.environ,
        "ORCHESTRA_CONFIG": str(folder / "config"),
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "HOME": str(folder),
    }


def run(folder: Path, *command: str) -> list[str]:
    done = subprocess.run(
        command, cwd=folder, env=environment(folder), capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.parametrize(
    ("line", "found"),
    [
        (["no"], ["node"]),
        (["--clu"], ["--cluster"]),
        (["--cluster", ""], ["prod"]),
        (["-p", "x", "pla"], ["plan"]),
        (["exec", "w"], ["web", "worker"]),
        (["scale", "we"], ["web="]),
        (["node", "dra"], ["drain"]),
        (["node", "drain", ""], ["n1"]),
        (["ps", "--format", ""], ["json", "table"]),
        (["logs", "--tai"], ["--tail"]),
        (["no-such-command", ""], []),
    ],
)
def test_words_come_from_the_parsers_and_this_machines_files(
    folder: Path, line: list[str], found: list[str]
) -> None:
    words = run(folder, sys.executable, "-m", "orchestra.cli.main", "completion", "words", *line)
    assert [w for w in words if not (line[-1] == "" and w.startswith("-"))] == found


def test_a_broken_compose_file_only_offers_no_services(folder: Path) -> None:
    (folder / "compose.yaml").write_text("services: [")
    words = run(folder, str(BIN / "orchestra"), "completion", "words", "exec", "")
    assert "web" not in words and "--index" in words


def test_bash_completes(folder: Path) -> None:
    script = (
        'eval "$(orchestra completion bash)"; COMP_WORDS=(orchestra exec wo); COMP_CWORD=2; '
        '_orchestra; echo "${COMPREPLY[@]}"'
    )
    assert run(folder, "bash", "-c", script) == ["worker"]


def test_fish_completes(folder: Path) -> None:
    script = 'orchestra completion fish | source; complete -C "orchestra exec wo"'
    assert run(folder, "fish", "-c", script) == ["worker"]


def test_zsh_completes(folder: Path) -> None:
    script = (
        'autoload -Uz compinit && compinit -u; eval "$(orchestra completion zsh)"; '
        "compadd() { print -l -- ${(P)2}; }; words=(orchestra exec wo); CURRENT=3; _orchestra"
    )
    assert run(folder, "zsh", "-c", script) == ["worker"]


@pytest.mark.parametrize("word", [*main.VERBS, *main.NOUNS])
def test_every_command_has_candidates(word: str) -> None:
    assert list(completion.candidates([word]))
