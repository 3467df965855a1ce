"""Of two processes with the same command one writes; the other says which, or waits."""

import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from kvdelta.harness.comparison import compare
from kvdelta.harness.records.run_folder import load_run
from kvdelta.harness.records.writer import OURS, WRITER, writing
from kvdelta.schemes.errors import UserError

ROOT = Path(__file__).parents[3]
SPECS = ["int8:group_size=16"]
HOLDS = """
import sys, time
from pathlib import Path
from kvdelta.harness.records.writer import writing

with writing(Path(sys.argv[1]), wait=False):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process, which holds a folder until it is killed."""
    (tmp_path / "run").mkdir()
    command = [sys.executable, "-c", HOLDS, str(tmp_path / "run")]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    ) as one:
        assert one.stdout is not None
        assert one.stdout.readline() == "held\n"
        yield one
        one.kill()


def test_a_second_writer_is_refused_with_who_writes(subject, options, holder):
    with pytest.raises(UserError, match=rf"run is being written by process {holder.pid} on .* give --wait"):
        compare(SPECS, options, subject=subject)
    assert sorted(path.name for path in Path(options.out).iterdir()) == sorted(OURS)


def test_a_process_that_died_holds_nothing(subject, options, holder):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert (Path(options.out) / WRITER).exists()
    run, folder = compare(SPECS, options, subject=subject)
    assert run.status == load_run(folder).status == "complete"
    assert not (folder / WRITER).exists()


def test_a_second_writer_waits_where_it_is_told_to(subject, options, holder):
    def ends(note):
        if note.startswith("waiting"):
            notes.append(note)
            holder.kill()

    notes: list[str] = []
    with writing(Path(options.out), wait=True, on_note=ends):
        assert notes == [
            f"waiting: {options.out} is being written by process {holder.pid} on " + notes[0].partition(" on ")[2]
        ]


def test_the_second_prints_what_the_first_has_scored(subject, options):
    """Both begin at once; one of them scores, and each has the record."""
    runs = []

    def go():
        runs.append(compare(SPECS, replace(options, wait=True), subject=subject))

    threads = [threading.Thread(target=go) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert runs[0] == runs[1]
    assert len(runs[0][0].windows) == len(subject.windows)
