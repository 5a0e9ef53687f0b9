"""Tensors out of files that others wrote with torch.save(). Nothing in a file is executed."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from nncontrol_prune.controllers.errors import ImportFailedError, refusing

MAX_ARCHIVE_BYTES = 512 * 1024 * 1024
"""The members of an archive may not declare more than this together."""


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Put the file's name before the message of an error."""
    try:
        yield
    except ImportFailedError as error:
        raise ImportFailedError(f"{path}: {error}") from error


def check_declared_size(archive: zipfile.ZipFile) -> None:
    """Refuse an archive that would unpack to too much.

    Before a byte is unpacked: a small archive may claim to hold gigabytes.
    """
    declared = sum(info.file_size for info in archive.infolist())
    if declared > MAX_ARCHIVE_BYTES:
        raise ImportFailedError(f"its members declare {declared} bytes, allowed are {MAX_ARCHIVE_BYTES}")


def load_tensors(content: bytes, what: str) -> dict[str, Any]:
    """Read a dictionary of tensors by torch's `weights_only` loading.

    Args:
        content: What torch.save() wrote.
        what: What to call it in a message.

    Raises:
        ImportFailedError: It is damaged, or holds more than tensors and plain values.
    """
    with refusing(f"{what} is damaged"):
        if zipfile.is_zipfile(io.BytesIO(content)):
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                check_declared_size(archive)
    try:
        return dict(torch.load(io.BytesIO(content), map_location="cpu", weights_only=True))
    except Exception as error:  # torch's own message advises to load such a file with weights_only=False
        raise ImportFailedError(f"{what} is damaged or holds more than tensors; save the model again") from error


def check_tensor(tensor: Any, what: str) -> None:
    """Refuse what is not a dense floating-point tensor of finite values.

    Args:
        tensor: Whatever stands where a tensor should.
        what: What to call it in a message.

    Raises:
        ImportFailedError: It is not.
    """
    with refusing(f"{what} is not a plain tensor"):
        # A view may declare any shape over a small storage.
        if not tensor.is_floating_point() or tensor.untyped_storage().nbytes() < tensor.numel() * tensor.element_size():
            raise ImportFailedError(f"{what} is not a dense floating-point tensor; save the model again")
        if not torch.isfinite(tensor.to(torch.float32)).all():
            raise ImportFailedError(f"{what} holds NaN or infinite values; take an earlier checkpoint")
