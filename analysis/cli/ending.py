"""How a command ends: its exit code, and one line for what went wrong."""

import errno
import os
import sys
import traceback
from typing import Any

import typer

from kvdelta.analysis.cli.starting import complain, note
from kvdelta.harness.no_memory import out_of_memory
from kvdelta.harness.records import held
from kvdelta.schemes.errors import UserError

FAULT, USER_ERROR, AUDIT_FAILED, ROW_FAILED, INTERRUPTED, CLOSED = 1, 2, 3, 4, 130, 141

NAMED = 3  # folders of a message, the last ones

ClickException: type[Exception] = typer.BadParameter.__mro__[2]  # click's own, or that of typer's copy of click


def exit_code(app: typer.Typer) -> int:
    """Run the command that was typed. What is neither the user's error nor a device without room keeps its traceback, and says
    what to do with it."""
    command: Any = typer.main.get_command(app)
    held.FOLDERS.clear()
    try:
        # not app(): that turns an interrupt into an exit without a word
        with command.make_context("kvdelta", sys.argv[1:]) as context:
            code = command.invoke(context)
        sys.stdout.flush()
        return code or 0
    except typer.Exit as stop:
        return stop.exit_code
    except UserError as error:
        complain(str(error))
    except ClickException as error:
        message: str = error.format_message()  # type: ignore[attr-defined]
        first, *more = message.splitlines() or [""]
        complain(first)
        for line in more:  # the help of a command without words
            note(line)
    except BrokenPipeError:  # who reads has enough, as head does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at the end
        return CLOSED
    except OSError as error:
        if error.filename is not None or not _stdout_fails(error):
            return _fault()
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        complain(f"stdout cannot be written: {error.strerror}; send it to a file on a disk that has room")
    except KeyboardInterrupt:
        complain(f"interrupted; {_kept()}")
        return INTERRUPTED
    except SystemExit as stop:  # no command of ours calls it
        complain(
            f"{_who(stop)} called exit({stop.code!r}), which ended the command; let it raise an error in place of that"
        )
    except Exception as error:
        if not out_of_memory(error):
            return _fault()
        complain(
            "the device has no memory left; finished windows are kept: free some and give the same command again, "
            "or use a shorter --window-length, --dtype float16, another --device or a smaller --model"
        )
    return USER_ERROR


def _kept() -> str:
    """What an interrupted command leaves, by folder."""
    from kvdelta.harness.records.progress import progress
    from kvdelta.harness.records.run_folder import RUN_FILE

    runs = {folder for folder in held.FOLDERS if os.path.isfile(folder / RUN_FILE)}
    # within a run others may lie for a while, of its windows that are scored again
    folders = [one for one in dict.fromkeys(held.FOLDERS) if not runs & set(one.parents)]
    said = [f"{folder}, {how_far}" for folder in folders if (how_far := progress(folder))]
    if not said:
        return "no record was begun or added to: the same command begins as this one did"
    more = len(said) - NAMED
    return f"kept: {'; '.join(said[-NAMED:])}" + f"; and {more} more" * (more > 0) + "; the same command goes on"


def _who(stop: SystemExit) -> str:
    """File and line that it comes from."""
    *_, last = traceback.extract_tb(stop.__traceback__)
    return f"{last.filename}:{last.lineno}"


def _stdout_fails(error: OSError) -> bool:
    """A disk that is full says so again; of a stdout without a buffer, to a line more."""
    try:
        sys.stdout.flush()
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EBADF):
            print(flush=True)
    except OSError:
        return True
    return False


def _fault() -> int:
    """The error that is being handled is a defect."""
    traceback.print_exc()
    complain("this is a fault of kvdelta, not of yours: please report it, with these lines and the command")
    return FAULT
