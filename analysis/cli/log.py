"""`--log-json FILE`: what happens, as JSON lines, while it happens: for dashboards and for who waits."""

import json
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from kvdelta.harness.processes import rank
from kvdelta.schemes.errors import UserError

_stream: IO[str] | None = None
_opened = 0.0


def open_log(path: Path | None) -> None:
    """Events go to the end of this file from here on. UserError where it cannot be written. Of several processes the first writes."""
    global _stream, _opened
    _stream = None
    if path is None or rank():
        return
    try:
        _stream = open(path, "a", encoding="utf-8", buffering=1)  # noqa: SIM115 it is written to until the process ends
    except OSError as error:
        raise UserError(
            f"--log-json {path} cannot be written: {error.strerror}; name a file in a folder that is there"
        ) from None
    _opened = time.monotonic()


def event(kind: str, **facts: Any) -> None:
    """One line: when, how long since the log was opened, what, and its facts. Nothing where no log was asked for."""
    if _stream is None:
        return
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    line = {"time": now, "seconds": round(time.monotonic() - _opened, 3), "event": kind, **facts}
    try:
        _stream.write(json.dumps(_finite(line), ensure_ascii=True, default=str) + "\n")
    except OSError:
        close()  # a disk that is full costs the log, not the run


def close() -> None:
    global _stream
    if _stream is not None:
        stream, _stream = _stream, None
        stream.close()


def _finite(value: Any) -> Any:
    """NaN and infinities are no JSON."""
    if isinstance(value, float):
        return value if abs(value) < float("inf") else None
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    return [_finite(one) for one in value] if isinstance(value, list | tuple) else value
