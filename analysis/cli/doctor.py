"""`kvdelta doctor` and `kvdelta --version`."""

import json
from dataclasses import asdict
from typing import Annotated, Literal

import typer

from kvdelta.analysis.cli.ending import USER_ERROR
from kvdelta.analysis.cli.starting import STARTED, note, say

doctoring = typer.Typer()


@doctoring.command()
def doctor(
    try_it: Annotated[
        bool, typer.Option("--try", help="score a window of the packaged model, which is fetched if need be")
    ] = False,
    format: Annotated[Literal["table", "json"], typer.Option("--format", help="of the result on stdout")] = "table",
) -> int:
    """What works here: versions, devices, memory, the packaged model, optional parts, the hub; and what to do about the rest."""
    from kvdelta.harness.doctor import examine

    found = []
    for finding in examine():
        found.append(finding)
        if format == "table":
            say(f"{finding.part:15} {finding.verdict:8} {finding.found}")
    if format == "json":
        print(json.dumps([asdict(finding) for finding in found], indent=1))
    wrong = [finding.part for finding in found if finding.verdict == "wrong"]
    if wrong:
        note(f"kvdelta does not run with these: {', '.join(wrong)}")
        return USER_ERROR
    if try_it:
        _tried()
    return 0


def _tried() -> None:
    import tempfile
    import time

    from kvdelta.analysis.cli.starting import load_subject
    from kvdelta.harness.options import Options

    with tempfile.TemporaryDirectory() as folder:
        options = Options(windows=1, out=folder)
        subject = load_subject(options)
        loaded = time.perf_counter() - STARTED
        from kvdelta.harness import compare

        run, _ = compare(["int4"], options, subject=subject)
    scored = time.perf_counter() - STARTED - loaded
    verdict = "the audit passed" if not run.audit.failures else f"the audit failed: {run.audit.failures}"
    note(f"loaded in {loaded:.1f} s; a window by exact and int4, with its controls, in {scored:.1f} s; {verdict}")


def show_version(asked: bool) -> bool:
    """The versions that a record says too."""
    if asked:
        from kvdelta.harness.records.provenance import commit, versions

        others = ", ".join(f"{name} {version}" for name, version in versions().items() if name != "kvdelta")
        say(f"kvdelta {versions()['kvdelta']} ({others}{f'; commit {commit()}' if commit() else ''})")
        raise typer.Exit
    return asked
