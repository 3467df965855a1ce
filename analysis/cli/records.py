"""Commands about records themselves, without a model: verify and merge."""

import json
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from kvdelta.analysis.cli.ending import USER_ERROR
from kvdelta.analysis.cli.flags import Format
from kvdelta.analysis.cli.starting import note, say, typed
from kvdelta.schemes.errors import UserError

records = typer.Typer()


@records.command()
def verify(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN…", help="folders; all records in and below them are checked")
    ],
    format: Annotated[Literal["table", "json"], typer.Option("--format", help="of the result on stdout")] = "table",
) -> int:
    """Is every record as it was written? By its hashes and by the sums of its tokens; says what is damaged, by file."""
    from kvdelta.harness.records.verify import verify as verified

    found, nothing = [], 0
    for folder in runs:
        try:
            found += verified(folder)
        except UserError as error:  # the other folders are looked at all the same
            note(str(error))
            nothing += 1
    if format == "json":
        rows = [{**asdict(one), "file": str(one.file)} for one in found]
        print(json.dumps(rows, indent=1))
    else:
        for one in found:
            state = "damaged" if one.damage else "whole" if one.hashed else "readable, from before records had hashes"
            say(
                f"{one.file}: {state}" + (f" ({one.holds})" if one.holds else ""), *(f"  {line}" for line in one.damage)
            )
    damaged, older = sum(bool(one.damage) for one in found), sum(not one.hashed for one in found)
    note(f"checked: {len(found)}, damaged: {damaged}" + (f", {older} without hashes" if older else ""))
    return USER_ERROR if damaged or nothing else 0


@records.command()
def merge(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN…", help="run folders of the same model, text and protocol")
    ],
    out: Annotated[Path, typer.Option("--out", help="folder of the run that they are joined to")],
    format: Format = "table",
) -> int:
    """Join runs: of other schemes on the same windows, or of other windows by the same schemes. Windows that several have must have the
    same figures in them, to the bit."""
    from kvdelta.analysis.cli.runs import keep_summary, report_failures, show_run
    from kvdelta.harness.merging import Part, merged
    from kvdelta.harness.records.run_folder import load_run
    from kvdelta.harness.records.writer import holding

    if len(runs) < 2:
        raise UserError(f"merge joins runs, and {runs[0]} is one: name two or more")
    parts = [Part(load_run(folder), folder) for folder in runs]
    with ExitStack() as held:
        run = merged(parts, out, typed(), holding(held, wait=False), note)
        keep_summary(run, out)
    note(f"record: {out}")
    show_run(run, out, format)
    return report_failures(run)
