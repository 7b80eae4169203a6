"""What a layer is: a tar of changes, named by its content, and what its special names mean.

A layer's *diff id* is the digest of its uncompressed tar; a *chain id* names the result of stacking
layers (config.md, "Layer ChainID"). A deletion is a file ".wh.NAME" in the tar and a character
device 0:0 in an overlay directory; a directory that hides all below it has an entry ".wh..wh..opq"
in the tar and the xattr trusted.overlay.opaque=y on disk (layer.md, "Whiteouts"; kernel
Documentation/filesystems/overlayfs.rst, "whiteouts and opaque directories").
"""

from __future__ import annotations

from collections.abc import Sequence

from attrs import frozen

from orchestra.image.digest import Digest

WHITEOUT = ".wh."
OPAQUE = ".wh..wh..opq"
AUFS = ".wh..wh."  # further names of this beginning are aufs' own files
OPAQUE_XATTR = "trusted.overlay.opaque"
OVERLAY_XATTRS = ("trusted.overlay.", "user.overlay.")
HOST_XATTRS = ("security.selinux",)  # a label is the host's, never the image's


@frozen
class Limits:
    """What one layer may ask of a host before it is taken for a bomb."""

    entries: int = 1_000_000
    bytes: int = 128 << 30  # unpacked
    ratio: int = 200  # unpacked to packed, beyond `ratio_from` unpacked bytes
    ratio_from: int = 1 << 30
    depth: int = 256  # directories within each other


def chain_ids(diff_ids: Sequence[str]) -> tuple[Digest, ...]:
    """The chain id of every layer on top of those before it, lowest first."""
    chains: list[Digest] = []
    for diff_id in diff_ids:
        own = Digest(diff_id)
        chains.append(Digest.of(f"{chains[-1]} {own}".encode()) if chains else own)
    return tuple(chains)
