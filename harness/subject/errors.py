"""What of the subject cannot be had or used, said in one line."""

from kvdelta.schemes.errors import UserError

OTHER_MODEL = "name another model with --model (a hub id, a folder, a GGUF file)"


class ModelError(UserError):
    """A model that cannot be had or cannot be used; the message is one line with the way out."""


class TextError(UserError):
    """A text that cannot be had or used; the message is one line with the way out."""


def one_line(error: object, line: int = 0) -> str:
    """The first line of an error that says something (or its last, -1), for messages that must be one line."""
    lines = [stripped for raw in str(error).splitlines() if (stripped := raw.strip().rstrip("."))]
    return lines[line] if lines else type(error).__name__
