"""Kill a comparison at random moments, and go on with it, again and again; a program of its own, since it forks.

    python -m tests.harness.kills --kills 40 --processes 2

Every child does what the command does once the model is there. After each kill the folder must hold a run that loads, with no window
fewer than before; a run that ends must be that of nobody killed, to the last bit.
"""

import argparse
import os
import random
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import replace
from pathlib import Path

import torch

from kvdelta.harness.comparison import compare
from kvdelta.harness.options import Options
from kvdelta.harness.records import tokens
from kvdelta.harness.records.run_folder import RUN_FILE, load_run
from kvdelta.harness.records.verify import verify
from kvdelta.harness.subject.prepared import prepare
from kvdelta.harness.subject.windows import cut_windows
from tests.conftest import tiny_model, tiny_options, tiny_subject, tiny_tokens

SCHEMES = ["int8:group_size=16", "kivi:bits=2,group_size=8,residual_length=16", "turboquant:bits=2"]


def tiny(batch):
    """A model of two layers, 12 windows."""
    some = tiny_subject(tiny_model(), tiny_tokens())
    windows = cut_windows(some.tokens, window_length=128, score_length=32, stride=None, windows=12, offset=0)
    return replace(some, windows=windows), replace(tiny_options(None), batch=batch, windows=12), SCHEMES


def packaged(batch):
    """The packaged model, 6 windows of 512 tokens."""
    options = Options(windows=6, window_length=512, score_length=128, batch=batch)
    return prepare(options), options, ["int4", "kivi2", "hqq4"]


def start(work, folder, processes):
    """The processes of one run, forked."""
    subject, options, schemes = work
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    children = []
    for rank in range(processes):
        if child := os.fork():
            children.append(child)
            continue
        torch.set_num_threads(1)
        sys.stdout = sys.stderr = open(folder.parent / f"said-{rank}", "w")  # noqa: SIM115 until its end
        if processes > 1:
            os.environ |= {
                "RANK": str(rank),
                "WORLD_SIZE": str(processes),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
            }
        try:
            compare(schemes, replace(options, out=str(folder)), subject=subject)
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)
        os._exit(0)
    return children


def is_over(child):
    return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def ended(children):
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def content(folder):
    """What decides tables, and the tokens."""
    run = load_run(folder)
    files = [tokens.load_tokens(folder, window.index) for window in run.windows]
    return run.model_dump_json(exclude={"command"}), [{name: a.tobytes() for name, a in one.items()} for one in files]


def left(folder):
    """Windows that a killed run has; of one that was killed before it began None."""
    if not (folder / RUN_FILE).exists():
        return None
    assert not [one for one in verify(folder) if one.damage]
    return {window.index: window for window in load_run(folder).windows}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--batch", default="3")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--packaged", action="store_true", help="the packaged model, in place of a tiny one")
    given = parser.parse_args()
    torch.set_num_threads(1)
    draw = random.Random(given.seed)
    work = (packaged if given.packaged else tiny)(given.batch)
    with tempfile.TemporaryDirectory() as place:
        began = time.monotonic()
        assert ended(start(work, Path(place) / "whole", 1)) == [0]
        length, whole = time.monotonic() - began, content(Path(place) / "whole")
        kills, runs, at = 0, 0, Counter()
        folder, before = Path(place) / "0", {}
        while kills < given.kills or folder.exists():
            last = kills >= given.kills
            children = start(work, folder, given.processes)
            if not last:
                moment = time.monotonic() + draw.uniform(0, length * given.processes)  # two have more to begin with
                while time.monotonic() < moment and not all(map(is_over, children)):
                    time.sleep(0.002)
                for child in draw.sample(children, len(children)):  # a launcher ends the others
                    os.kill(child, signal.SIGKILL)
            codes = ended(children)
            if all(code == 0 for code in codes):
                assert content(folder) == whole, "a run that was killed ends as another"
                runs += 1
                folder, before = Path(place) / str(runs), {}
                continue
            # of two the other may find itself alone before it is killed too
            killed = -signal.SIGKILL in codes and set(codes) <= {-signal.SIGKILL, 0, 1}
            assert killed, f"it ends by itself, {codes}: {(Path(place) / 'said-0').read_text()}"
            assert not last, f"{codes}: {(Path(place) / 'said-0').read_text()}"
            kills += 1
            now = left(folder)
            at["before it began" if now is None else f"{len(now)} windows"] += 1
            assert before.items() <= (now or {}).items(), "a window that was finished is gone"
            before = now or before
    print(f"{kills} kills in {runs} runs of {given.processes} processes, batch {given.batch}: nothing lost")
    print("killed at:", ", ".join(f"{where} ({count})" for where, count in sorted(at.items())))


if __name__ == "__main__":
    main()
