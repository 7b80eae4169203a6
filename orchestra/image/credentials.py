"""Who we are at a registry: what `docker login` left in docker's config.json.

Read are `auths` (base64 or identity tokens), `credHelpers` and `credsStore`; nothing is written. A
helper is the program docker-credential-NAME of the docker-credential-helpers protocol. Law: secrets
appear in no message and no repr.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import re
import subprocess
from collections.abc import Mapping
from typing import Any

import trio
from attrs import field, frozen

from orchestra.image.reference import DEFAULT_DOMAIN
from orchestra.model.errors import Invalid, Unavailable

HUB = "https://index.docker.io/v1/"  # under this key docker keeps docker.io's
_HELPER = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9._-]*", re.ASCII)
_TOKEN_USER = "<token>"  # a helper's user name where the secret is an identity token
_NOT_FOUND = "credentials not found"


@frozen
class Credentials:
    """A user and password, or an identity token (an OAuth2 refresh token) in their place."""

    user: str
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)

    def basic(self) -> str:
        """The value of an Authorization header."""
        return "Basic " + base64.b64encode(f"{self.user}:{self.password}".encode()).decode()


def docker_config(environ: Mapping[str, str]) -> str:
    """The path of docker's own configuration."""
    folder = environ.get("DOCKER_CONFIG") or f"{environ.get('HOME', '/root')}/.docker"
    return os.path.join(folder, "config.json")


class CredentialStore:
    """What the file at `path` knows. An absent file knows nothing."""

    def __init__(self, path: str) -> None:
        self._path = path

    async def find(self, domain: str) -> Credentials | None:
        """The credentials for the registry `domain`; None where there are none.

        Invalid where the file is damaged, Unavailable where a helper fails.
        """
        document = self._read()
        helpers = self._mapping(document, "credHelpers")
        wanted = _host(HUB) if domain == DEFAULT_DOMAIN else domain
        helper = next((v for k, v in helpers.items() if _host(k) == wanted), "")
        helper = helper or document.get("credsStore") or ""
        if helper:
            return await self._ask(str(helper), HUB if domain == DEFAULT_DOMAIN else domain)
        for key, entry in self._mapping(document, "auths").items():
            if _host(key) == wanted and isinstance(entry, dict):
                return self._decoded(key, entry)
        return None

    def _read(self) -> Mapping[str, Any]:
        try:
            with open(self._path, "rb") as file:
                document = json.load(file)
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except (OSError, ValueError) as error:
            raise Invalid(f"cannot read {self._path}: {error}") from None
        if not isinstance(document, dict):
            raise Invalid(f"cannot read {self._path}: it is not a JSON object")
        return document

    def _mapping(self, document: Mapping[str, Any], key: str) -> Mapping[str, Any]:
        value = document.get(key) or {}
        if not isinstance(value, dict):
            raise Invalid(f"cannot read {self._path}: {key} is not a JSON object")
        return value

    def _decoded(self, key: str, entry: Mapping[str, Any]) -> Credentials | None:
        user, password = str(entry.get("username") or ""), str(entry.get("password") or "")
        if text := entry.get("auth"):
            try:
                user, _, password = (
                    base64.b64decode(str(text), validate=True).decode().partition(":")
                )
            except (binascii.Error, UnicodeDecodeError):
                raise Invalid(
                    f"cannot read {self._path}: the entry of {key} is damaged; "
                    f"`docker login {key}` writes it again"
                ) from None
        token = str(entry.get("identitytoken") or "")
        return Credentials(user, password.rstrip("\0"), token) if user or token else None

    async def _ask(self, helper: str, server: str) -> Credentials | None:
        """`docker-credential-HELPER get`: the server on stdin, JSON on stdout."""
        if not _HELPER.fullmatch(helper):
            raise Invalid(f"cannot read {self._path}: {helper!r} is no name of a credential helper")
        program = f"docker-credential-{helper}"
        try:
            done = await trio.run_process(
                [program, "get"],
                stdin=server.encode(),
                capture_stdout=True,
                stderr=subprocess.DEVNULL,
                check=False,
            )
        except OSError as error:
            raise Unavailable(
                f"cannot run {program}, which {self._path} names: {error.strerror}"
            ) from None
        if done.returncode:
            if _NOT_FOUND in done.stdout.decode("utf-8", "replace"):
                return None
            raise Unavailable(f"{program} knows no credentials for {server}: it failed")
        try:
            answer = json.loads(done.stdout)
            user, secret = str(answer["Username"]), str(answer["Secret"])
        except (ValueError, KeyError, TypeError):
            raise Unavailable(f"{program} answered no credentials for {server}") from None
        return Credentials("", "", secret) if user == _TOKEN_USER else Credentials(user, secret)


def _host(key: str) -> str:
    """The host of a key, which may be a URL: "https://index.docker.io/v1/" is index.docker.io."""
    return key.partition("://")[2].partition("/")[0] if "://" in key else key.partition("/")[0]
