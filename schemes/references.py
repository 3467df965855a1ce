"""Files that specs name: the path is a label for people, the hash of the content is what counts. Light: no torch.

As written: PATH or PATH#HASH; a path with one of , # = ( ) or a blank in quotes, "PATH" or "PATH"#HASH.
"""

import hashlib
import re

from kvdelta.schemes.errors import UserError

DIGITS = 8
_WRITTEN = re.compile(rf'(?P<path>"[^"\0]+"|[^"#\0]+)(?:#(?P<digest>[0-9a-f]{{{DIGITS}}}))?')
_NEEDS_QUOTES = re.compile(r"[\s,#=()]")
_LABEL = re.compile(rf'(?<=[@=])(?:"[^"]*"|[^"#,]*)(?=#[0-9a-f]{{{DIGITS}}}(?![0-9a-f]))')


def split_reference(text: str) -> tuple[str, str]:
    """The path, and the hash that the content must have, or "". UserError where a path ends in something else, or has
    quotes of its own."""
    written = _WRITTEN.fullmatch(text)
    if written is None:
        raise UserError(
            f"{text!r} names no file: behind # comes a hash of {DIGITS} digits; a path that has a # itself is given in "
            'quotes, "PATH", and one that has quotes cannot be given: rename it'
        )
    return written["path"].strip('"'), written["digest"] or ""


def quoted(path: str) -> str:
    """A path as a spec takes it, in quotes where it needs them. UserError for one with quotes of its own."""
    if '"' in path:
        raise UserError(f"the path {path!r} has quotes, which no spec can say; rename it")
    return f'"{path}"' if not path or _NEEDS_QUOTES.search(path) else path


def reference(path: str, digest: str) -> str:
    """The canonical way to name a file."""
    return f"{quoted(path)}#{digest}"


def digest_of(*contents: bytes, expected: str, what: str) -> str:
    """The hash of a file's content, or of those that belong together. UserError where another is expected."""
    digest = hashlib.sha256(b"".join(contents)).hexdigest()[:DIGITS]
    if expected and expected != digest:
        raise UserError(f"{what} has changed since, its hash is now {digest}")
    return digest


def identity_of(name: str) -> str:
    """A canonical name without the paths of its files: equal where two schemes are, wherever their files lie."""
    return _LABEL.sub("", name)
