"""`make demo` and `make demo-down`: what a newcomer types first leaves nothing behind, ever."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.acceptance.conftest import CACHE, ROOT
from tests.leaks import mentions, no_leaks

pytestmark = pytest.mark.timeout(300)


class Demo:
    def __init__(self, scratch: Path) -> None:
        self.name = f"demo{os.getpid()}"
        self.environment = {
            **os.environ,
            "ORCHESTRA_CONFIG": str(scratch / "config"),
            "XDG_RUNTIME_DIR": str(scratch),
        }

    def command(self, verb: str) -> list[str]:
        script = str(ROOT / "examples" / "demo.py")
        return [sys.executable, script, verb, "--name", self.name, "--cache", str(CACHE)]

    def run(self, verb: str) -> str:
        done = subprocess.run(
            self.command(verb), env=self.environment, text=True, capture_output=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def run_until(self, text: str) -> None:
        """Bring the demo up and kill it with all its children once it has printed `text`."""
        process = subprocess.Popen(
            self.command("up"),
            env=self.environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        assert process.stdout is not None
        seen = []
        try:
            watchdog = threading.Timer(120, os.killpg, (process.pid, signal.SIGKILL))
            watchdog.start()
            for line in process.stdout:
                seen.append(line)
                if text in line:
                    return
            raise AssertionError(f"never printed {text!r}:\n{''.join(seen)}")
        finally:
            watchdog.cancel()
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            process.stdout.close()


@pytest.fixture
def demo(base_images: Path, tmp_path: Path) -> Demo:
    return Demo(tmp_path)


def test_the_demo_comes_up_twice_and_goes_without_a_trace(demo: Demo) -> None:
    with no_leaks(mentions(demo.name)):
        try:
            assert demo.run("up").count("(healthy)") == 4
            again = demo.run("up")
            assert "nothing to do" in again and again.count("(healthy)") == 4
        finally:
            demo.run("down")


@pytest.mark.parametrize("last", ["agent answers", "Loaded image: redis", "create volume"])
def test_a_demo_that_was_killed_is_taken_down_without_a_trace(demo: Demo, last: str) -> None:
    with no_leaks(mentions(demo.name)):
        try:
            demo.run_until(last)
        finally:
            demo.run("down")
