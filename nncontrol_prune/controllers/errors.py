"""What goes wrong with controllers, as sentences for the user."""


class ControllerError(Exception):
    """A controller cannot be used as asked; the message says why."""


class BundleError(ControllerError):
    """A bundle failed a check; the message names the file and the reason."""


class ImportFailedError(ControllerError):
    """A file from another library cannot be imported; the message says why and what to do."""
