"""What goes wrong with controllers, as sentences for the user."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class ControllerError(Exception):
    """A controller cannot be used as asked; the message says why."""


class BundleError(ControllerError):
    """A bundle failed a check; the message names the file and the reason."""


class ImportFailedError(ControllerError):
    """A file from another library cannot be imported; the message says why and what to do."""


@contextmanager
def refusing(reason: str) -> Iterator[None]:
    """Turn any error into a refusal: damaged archives, pickles and tensors raise every class there is."""
    try:
        yield
    except ImportFailedError:
        raise
    except Exception as error:
        detail = (str(error) or type(error).__name__).splitlines()[0]
        raise ImportFailedError(f"{reason} ({detail})") from error
