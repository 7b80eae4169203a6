"""SSH keys: the controller's own, made where it lives, and who may log in."""

import os
import pwd
import shutil
import subprocess
from typing import Any

from orchestra.controller.host.look import PACKAGES, package_manager
from orchestra.controller.host.paths import STATE, Refused, write_durably


def make_key(request: dict[str, Any]) -> dict[str, Any]:
    """Make the controller's SSH key on the host where it will live, once; its public line."""
    path = f"{STATE}/controller/id_ed25519"
    os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
    if not os.path.exists(path):
        if not shutil.which("ssh-keygen"):
            package = PACKAGES["ssh-keygen"].get(package_manager(), "the OpenSSH client")
            raise Refused(f"ssh-keygen is missing; install {package}")
        comment = str(request["comment"])
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", path]
        done = subprocess.run(command, capture_output=True)
        if done.returncode:
            raise Refused(f"ssh-keygen: {done.stderr.decode().strip()}")
    with open(f"{path}.pub") as file:
        return {"key": file.read().strip()}


def authorize(request: dict[str, Any]) -> dict[str, Any]:
    """Let a key in as `user`; a line of the same comment (an older key) is replaced."""
    change_authorized(str(request["user"]), str(request["key"]).split()[2], str(request["key"]))
    return {}


def withdraw(request: dict[str, Any]) -> dict[str, Any]:
    """Take back every key with this comment."""
    change_authorized(str(request["user"]), str(request["comment"]), "")
    return {}


def change_authorized(user: str, comment: str, line: str) -> None:
    account = pwd.getpwnam(user)
    path = f"{account.pw_dir}/.ssh/authorized_keys"
    try:
        with open(path) as file:
            before = file.read().splitlines()
    except FileNotFoundError:
        before = []
    after = [known for known in before if known.split()[-1:] != [comment]]
    after += [line] if line else []
    if after == before:
        return
    if not os.path.isdir(os.path.dirname(path)):
        os.mkdir(os.path.dirname(path), 0o700)
        os.chown(os.path.dirname(path), account.pw_uid, account.pw_gid)
    write_durably(path, "\n".join(after) + "\n")
    os.chown(path, account.pw_uid, account.pw_gid)
