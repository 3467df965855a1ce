"""The run folders that this process has held, for what is said of them where it is interrupted. Light: a command begins with it."""

from pathlib import Path

FOLDERS: list[Path] = []
