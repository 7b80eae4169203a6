"""Digests as a type: text that is not of the strict grammar never becomes one.

Digests name files below the store's root, so that the grammar is the defence against a "digest"
like ``sha256:../../etc`` (the law this file keeps: no path is built from an unchecked string).
Algorithms are those registered by the OCI image specification (descriptor.md, "Digests").
"""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING

from orchestra.model.errors import Invalid

if TYPE_CHECKING:
    from hashlib import _Hash

_GRAMMAR = re.compile(r"sha256:[a-f0-9]{64}|sha512:[a-f0-9]{128}", re.ASCII)


class Digest(str):
    """``sha256:<64 hex>`` or ``sha512:<128 hex>``, lower case. Invalid for anything else."""

    __slots__ = ()

    def __new__(cls, text: str) -> Digest:
        if isinstance(text, cls):
            return text
        if not isinstance(text, str) or not _GRAMMAR.fullmatch(text):
            raise Invalid(
                f"invalid digest {text!r:.100}: expected sha256: and 64, or sha512: and 128 "
                "lower-case hexadecimal digits"
            )
        return super().__new__(cls, text)

    @classmethod
    def of(cls, data: bytes, algorithm: str = "sha256") -> Digest:
        return cls(f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}")

    @property
    def algorithm(self) -> str:
        return self.partition(":")[0]

    @property
    def hex(self) -> str:
        return self.partition(":")[2]

    def hasher(self) -> _Hash:
        """A fresh hash object of this digest's algorithm."""
        return hashlib.new(self.algorithm)


def is_digest(text: str) -> bool:
    return _GRAMMAR.fullmatch(text) is not None
