"""Layers: compressing one, and unpacking it into a directory that overlayfs can use.

The layer is made here, the same each time: a tree of many small files and some large ones, half
of it text, as images have. gzip(1) and tar(1) do the same work in the same run, rounds alternate;
both sides write to the page cache of one disk.
"""

from __future__ import annotations

import io
import os
import random
import shutil
import statistics
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from orchestra.image.compression import ISAL, decompress, gzip
from orchestra.image.flow import Measured, ahead, read_file
from orchestra.image.unpack import unpack

SMALL, LARGE = 3000, 8
ROUNDS = 5


def measure(rounds: int) -> list[dict[str, Any]]:
    rounds = max(3, min(rounds, ROUNDS))
    with tempfile.TemporaryDirectory(prefix="bench-images") as text:
        place = Path(text)
        plain, packed = place / "layer.tar", place / "layer.tar.gz"
        plain.write_bytes(_layer())
        with packed.open("wb") as file:
            file.writelines(gzip(read_file(str(plain))))
        size = plain.stat().st_size / 1e6
        ours, theirs = _alternate(
            rounds,
            lambda: _drain(gzip(read_file(str(plain)))),
            lambda: _run(f"gzip -1 -c {plain} > {place}/peer.gz"),
        )
        unpacked, tar = _alternate(
            rounds,
            lambda: _unpack(packed, place / "ours"),
            lambda: _run(f"mkdir {place}/peer && tar -xzf {packed} -C {place}/peer"),
            lambda: [shutil.rmtree(place / name) for name in ("ours", "peer")],
        )
    kind = "isal" if ISAL else "zlib, isal is not installed"
    return [
        _row(f"layer compress (gzip, {kind})", size / ours, 300.0, "gzip -1", size / theirs),
        _row("layer unpack, digest checked", size / unpacked, 0.7 * size / tar, "tar -xzf",
             size / tar),
    ]  # fmt: skip


def _row(name: str, ours: float, budget: float, peer: str, value: float) -> dict[str, Any]:
    return {
        "group": "images",
        "name": name,
        "unit": "MB/s",
        "ours": ours,
        "budget": budget,
        "peer": peer,
        "peer_value": value,
        "better": "higher",
    }


def _alternate(
    rounds: int,
    ours: Callable[[], object],
    theirs: Callable[[], object],
    clean: Callable[[], object] = lambda: None,
) -> tuple[float, float]:
    """Median seconds of both; the first round only warms the caches."""
    times: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds + 1):
        for work, seconds in zip((ours, theirs), times):
            begun = time.perf_counter()
            work()
            if number:
                seconds.append(time.perf_counter() - begun)
        clean()
    return statistics.median(times[0]), statistics.median(times[1])


def _drain(pieces: Any) -> None:
    with open(os.devnull, "wb") as sink:
        for piece in pieces:
            sink.write(piece)


def _run(command: str) -> None:
    subprocess.run(["sh", "-c", command], check=True)


def _unpack(packed: Path, directory: Path) -> None:
    """As the store does it: decompressed ahead in a thread, the digest taken on the way."""
    directory.mkdir()
    blob = Measured(read_file(str(packed)))
    tar = Measured(decompress(blob, packed=packed.stat().st_size))
    unpack(ahead(tar), str(directory))


def _layer() -> bytes:
    """About 30 MB of tar; random by a fixed seed."""
    rng = random.Random(7)
    words = [rng.randbytes(rng.randrange(3, 9)).hex().encode() for _ in range(2000)]
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for number in range(SMALL):
            text = b" ".join(rng.choices(words, k=rng.randrange(20, 600)))
            _add(tar, f"usr/lib/part{number % 200}/file{number}", text)
        for number in range(LARGE):
            half = b" ".join(rng.choices(words, k=100_000))
            _add(tar, f"usr/bin/program{number}", half + rng.randbytes(len(half)))
    return out.getvalue()


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(content), 0o644
    tar.addfile(entry, io.BytesIO(content))
