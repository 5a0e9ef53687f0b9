"""IDX files, the format of MNIST: a magic number, the sizes of the dimensions, and then the values."""

from __future__ import annotations

import gzip
import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

MAGIC = bytes([0, 0, 8, 3])
"""Unsigned bytes in three dimensions: images."""
MAX_BYTES = 1024**3
"""No file may declare more than this."""


class IdxError(Exception):
    """A file is missing or is not what it should be; the message names it and says why."""


def find_idx(directory: Path, name: str) -> Path | None:
    """Return the path of an IDX file in a directory, plain or as .gz; None where there is neither."""
    return next((path for path in (directory / name, directory / f"{name}.gz") if path.is_file()), None)


def read_images(path: Path) -> NDArray[np.uint8]:
    """Read images (images, height, width) from an IDX file, plain or as .gz.

    Raises:
        IdxError: It cannot be read, holds something else, or is cut short.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            head = file.read(16)
            if head[:4] != MAGIC:
                raise IdxError(
                    f"{path} is not an IDX file of images: it starts with {head[:4].hex(' ') or 'nothing'}, "
                    f"and they start with {MAGIC.hex(' ')}"
                )
            if len(head) < 16:
                raise IdxError(f"{path} is cut short in its header")
            shape = struct.unpack(">3I", head[4:])
            declared = shape[0] * shape[1] * shape[2]
            if not 0 < declared <= MAX_BYTES:
                sizes = " × ".join(str(size) for size in shape)
                raise IdxError(f"{path} declares {sizes} bytes; allowed are 1 to {MAX_BYTES:,}")
            values = file.read(declared)
            more = file.read(1)
    except (OSError, EOFError, zlib.error) as error:
        raise IdxError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if len(values) < declared:
        raise IdxError(f"{path} is cut short: it declares {declared:,} bytes of images and holds {len(values):,}")
    if more:
        raise IdxError(f"{path} goes on after the {declared:,} bytes of images that it declares")
    return np.frombuffer(values, dtype=np.uint8).reshape(shape)
