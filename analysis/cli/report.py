"""`kvdelta report`: one page that holds all that records say. From records alone. Light: imports what it needs in it."""

import os
from pathlib import Path
from typing import Annotated

import typer

from kvdelta.analysis.cli.starting import note, typed
from kvdelta.schemes.errors import UserError

reporting = typer.Typer()


@reporting.command("report")
def report(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN…",
            help="folders of runs, of several protocols too, sweeps, measurements, replays, recommendations, benches and allocations",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="the page")] = Path("report.html"),
    raw: Annotated[
        bool, typer.Option("--raw/--no-raw", help="with the losses of every window to download, where there is room")
    ] = True,
) -> int:
    """One HTML page from records: what it costs, how sure, and why; needs no network to be read."""
    write_page(runs, out, typed(), raw)
    return 0


def write_page(runs: list[Path], out: Path, command: str, raw: bool = True) -> None:
    """UserError where the records do not go together, a library is missing, or the file cannot be written."""
    from kvdelta.analysis.pages.page import make_page
    from kvdelta.harness.records.writing import check_writable, write_atomically

    if os.path.isdir(out):
        raise UserError(f"--out {out} is a folder; name the file of the page, such as --out {out / 'report.html'}")
    check_writable(out)
    page = make_page(runs, command, note, raw)
    try:
        write_atomically(out, page)
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error.strerror}; choose another file with --out") from None
    note(f"report: {out} ({len(page) / 1e6:.1f} MB)")
