"""The demo: a three-node lab with the guestbook on it, made from Debian packages alone.

`python examples/demo.py up|down`, as `make demo` and `make demo-down` run it. Everything is done
with the commands a user would type, and each is printed before it runs.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
BIN = Path(sys.executable).parent / "orchestra"
IMAGES = ("python", "redis", "busybox")

NEXT = """
Try next ({bin} is in .venv/bin):
  orchestra lab client curl -s http://{node1}:8080/    the page; any node answers, {nodes}
  cd examples/guestbook                                  then, for the stack:
  orchestra ps                                           what runs where
  orchestra logs -f web                                  all web containers, merged by time
  orchestra exec web sh -c 'hostname; id'                a command in a running container
  orchestra scale web=5                                  more of them
  orchestra plan                                         what `up` would do after an edit
  orchestra lab exec node1 pkill -9 -f web.py            kill a container: it is back at once
  orchestra lab cut node3                                pull a cable (also: heal, kill, boot)
  orchestra node ls                                      who is there
  make demo-down                                         remove it all
"""


def run(*command: str, cwd: Path | None = None) -> None:
    """Run one of our commands as the user would, printing it; exits with its code if it fails."""
    print("$", "orchestra", *command, flush=True)
    done = subprocess.run([str(BIN), *command], cwd=cwd)
    if done.returncode:
        sys.exit(done.returncode)


def up(cache: str, lab: str) -> None:
    started = time.monotonic()
    print("making base images from Debian packages (cached in", cache + ")", flush=True)
    subprocess.run(
        [sys.executable, "-m", "orchestra.testing.baseimages", "--cache", cache, *IMAGES],
        check=True,
    )
    run("lab", "up", "--name", lab, "--nodes", "3")
    for name in IMAGES:
        run("image", "load", "--input", str(Path(cache) / f"{name}.tar"))
    run("up", cwd=HERE / "guestbook")
    run("ps", cwd=HERE / "guestbook")
    addresses = node_addresses()
    print(f"\nThe guestbook is up after {time.monotonic() - started:.0f} s:")
    for address in addresses:
        print(f"  http://{address}:8080/")
    print(
        NEXT.format(bin=BIN.name, node1=addresses[0], nodes=", ".join(addresses)).rstrip(),
        flush=True,
    )


def node_addresses() -> list[str]:
    import json

    listing = subprocess.run(
        [str(BIN), "node", "ls", "--format", "json"], check=True, capture_output=True, text=True
    )
    return [node["address"] for node in json.loads(listing.stdout)]


def down(lab: str) -> None:
    run("lab", "down", "--name", lab)
    print("the base images stay cached; remove the cache folder to make them anew")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="the guestbook on a three-node lab")
    parser.add_argument("verb", choices=("up", "down"))
    parser.add_argument("--cache", default="/var/cache/orchestra", help="of the base images")
    parser.add_argument("--name", default="lab", help="of the lab")
    arguments = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("the demo makes network namespaces and mounts: run it as root")
    if arguments.verb == "up":
        os.makedirs(arguments.cache, exist_ok=True)
        up(arguments.cache, arguments.name)
    else:
        down(arguments.name)
