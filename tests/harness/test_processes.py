"""Two processes on a CPU, as torchrun starts them, leave the record of one; what is joined, and what is dealt to whom."""

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from kvdelta.analysis.cli.ending import AUDIT_FAILED
from kvdelta.harness import sharding
from kvdelta.harness.caches.contenders import contenders_of
from kvdelta.harness.comparison import _check_alike, compare
from kvdelta.harness.passes import Passes
from kvdelta.harness.processes import Processes
from kvdelta.harness.records.run import LayerReads, Run
from kvdelta.harness.records.run_folder import load_run, save_run
from kvdelta.harness.records.tokens import load_tokens
from kvdelta.harness.records.writer import LOCK
from kvdelta.harness.runner import Progress, Runner
from kvdelta.harness.settings import header_of, settings_of
from kvdelta.harness.subject.prepared import own_device
from kvdelta.harness.subject.windows import cut_windows

ROOT = Path(__file__).parents[2]
STOPPED = ("--windows", "24", "--until-se", "100")  # after 16
FEW = ("--windows", "12", "--batch", "3", "--scheme", "int8:group_size=16", "--scheme", "turboquant:bits=2")

# One fails in a window that a key of it tells; the other, where a file says so, kills its process or waits to be ended
PICKY = """
import json, os, signal, time
from pathlib import Path
from transformers import DynamicCache

class Picky(DynamicCache):
    def update(self, keys, values, layer, *args, **kwargs):
        if layer == 0 and not self.get_seq_length() and keys[0, 0, 5, 0] > 2.5:
            raise RuntimeError(f"a key of {keys[0, 0, 5, 0]:.6f}")
        return super().update(keys, values, layer, *args, **kwargs)

def picky(config):
    return Picky(config=config)

calls = []

def there():
    return Path("out/processes/1.journal").exists() and Path("out/run.journal").exists()

def deadly(config):
    calls.append(config)
    if Path("armed").exists() and len(calls) > 3:  # in its second batch
        if os.environ["RANK"] == "0":
            time.sleep(3600)
        while not there():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)
    return DynamicCache(config=config)
"""


@pytest.fixture
def words(files, tmp_path):
    """A comparison with a row that fails half-way, in a folder of its own."""
    (tmp_path / "picky.py").write_text(PICKY)
    subject = ["--model", str(files / "model"), "--text", str(files / "text.txt"), "--device", "cpu"]
    sizes = ["--window-length", "128", "--score-length", "32", *FEW]
    return ["compare", *subject, *sizes, "--cache", "picky:picky", "--cache", "picky:deadly"]


@pytest.fixture
def launched(words, tmp_path):
    def launch(*more):
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        return subprocess.run(
            [*command, "-m", "kvdelta.analysis.cli.main", *words, *more, "--out", "out"],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )

    return launch


@pytest.fixture
def one(kvdelta, words):
    """The run of one process, and what it printed."""

    def one(*more):
        code, out, err = kvdelta(*words, *more, "--out", "one")
        assert (code, "failed: picky:picky" in err) == (AUDIT_FAILED, True)
        return load_run("one"), out

    return one


def fields(run):
    """All but the words of the command, and what the row read that failed, which the other process read on with; NaN as
    None."""
    content = json.loads(run.model_dump_json(exclude={"command"}))
    del content["audit"]["reads"]["picky:picky"]
    return content


def test_two_processes_leave_the_record_of_one(one, launched, tmp_path):
    """Of one that stops at a look, too; its batches are 5 times 3 windows, and 1."""
    run, table = one(*STOPPED)
    failed = [not math.isfinite(window.nll[3]) for window in run.windows]
    assert (failed[2], failed[-1], run.batches) == (False, True, [3, 3, 3, 3, 3, 1])
    done = launched(*STOPPED)
    two = load_run("out")
    assert fields(run) == fields(two)
    assert done.stdout == table
    assert done.stderr.count("failed: picky:picky") == 1
    assert "exitcode  : 3" in done.stderr
    arrays = [[load_tokens(Path(folder), w.index)["nll"] for w in run.windows] for folder in ("one", "out")]
    assert all((x[:3] == y[:3]).all() for x, y in zip(*arrays, strict=True))
    timings = json.loads((tmp_path / "out" / "timings.json").read_text())
    assert (timings["processes"], len(timings["seconds"]["control: identity"])) == (2, 1)
    assert len(timings["seconds"]["prefill"]) == len(run.batches)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"run.json", "timings.json", "tokens", LOCK}


def test_a_killed_process_ends_the_run_and_the_same_command_goes_on(one, launched, tmp_path):
    (tmp_path / "armed").touch()
    done = launched()
    assert done.returncode not in (0, None)
    assert "Signal 9 (SIGKILL) received by PID" in done.stderr
    left = load_run("out")
    assert (left.status, len(left.windows)) == ("running", 3)
    (tmp_path / "armed").unlink()
    assert "6 of 12 windows are there" in launched().stderr
    assert fields(one()[0]) == fields(load_run("out"))


@pytest.fixture
def halves(kvdelta, words):
    """A run of one process, and its windows as two parts: batches 0 and 2, batches 1 and 3."""
    kvdelta(*words, "--out", "one")
    run = load_run("one")
    parts = []
    for first in (0, 1):
        part = run.model_copy(deep=True)
        part.windows = [w for i, w in enumerate(part.windows) if i // 3 % 2 == first]
        part.batches = [3, 3]
        part.status = "running"
        for layers in part.audit.reads.values():
            for layer, reads in layers.items():
                layers[layer] = LayerReads(pairs=reads.pairs // 2, key=reads.key // 2, value=reads.value // 2)
        parts.append(part)
    run.status = "running"
    return run, *parts


def test_parts_are_joined_in_the_order_of_one_process(halves):
    run, first, second = halves
    order = [window.index for window in run.windows]
    first.batch = 1
    first.batches = [3, 1, 2]
    joined = sharding.joined(first, [second], order)
    assert joined.windows == run.windows or all(map(same_window, joined.windows, run.windows))
    assert (joined.batch, joined.batches) == (1, [3, 3, 1, 2, 3])
    assert sharding.joined(joined, [second], order).audit == joined.audit
    before = {label: sum(reads.pairs for reads in layers.values()) for label, layers in first.audit.reads.items()}
    after = {label: sum(reads.pairs for reads in layers.values()) for label, layers in joined.audit.reads.items()}
    assert after == {label: 2 * pairs for label, pairs in before.items()}


def same_window(a, b):
    return a.model_dump_json() == b.model_dump_json()


def test_a_row_that_fails_anywhere_has_no_sums_from_there_on(halves):
    """The earlier of two reasons counts, as in one process."""
    run, first, second = halves
    order = [window.index for window in run.windows]
    for part, at, reason in ((first, 4, "late"), (second, 1, "early")):
        part.contenders[1].error = reason
        for window in part.windows[at:]:
            window.nll[1] = math.nan
    joined = sharding.joined(first, [second], order)
    assert joined.contenders[1].error == "early"
    assert [math.isfinite(window.nll[1]) for window in joined.windows] == [True] * 4 + [False] * 8
    assert all(window.pairs[1] == 0 and math.isnan(window.kl[1]) for window in joined.windows[4:])
    assert joined.audit.failures[joined.contenders[1].label] == ["it failed: early"]


def test_parts_from_before_the_controls_are_left_out(halves):
    run, first, second = halves
    order = [window.index for window in run.windows]
    (folder := Path("stopped")).mkdir()
    save_run(second, folder, f"{sharding.PARTS}/1.json")
    early = first.model_copy(update={"windows": first.windows[:2], "batches": [2]}, deep=True)
    assert sharding.with_parts(early, folder, order) == early
    assert len(sharding.with_parts(first, folder, order).windows) == 12
    assert [path.name for path in folder.iterdir()] == ["run.json"]


class Hand(Processes):
    """One of two processes that take turns, without the other: what that has done is given."""

    def __init__(self, rank, parts=()):
        self.rank, self.size, self.parts, self.done = rank, 2, parts, None

    def deal(self, batches, first):
        assert first == 1
        return [(at, batch) for at, batch in enumerate(batches) if at % 2 == self.rank]

    def gather(self, mine):
        self.done = mine
        return [mine, *self.parts]

    def from_first(self, make):
        return make() if self.rank == 0 else self.done


def test_each_process_keeps_its_part_and_says_where_in_the_run_it_is(subject, options, tmp_path):
    subject = replace(subject, windows=cut_windows(subject.tokens, window_length=128, score_length=32, windows=8))
    options = replace(options, batch="3")
    contenders = contenders_of(["int8:group_size=16"])
    settings = settings_of(options, subject, [contender.name for contender in contenders])
    begun = Run(**header_of(options, subject, settings), contenders=[], batch=3)
    seen = []
    runners = [
        Runner(
            Passes(subject.loaded.model, contenders), "tiny", begun.model_copy(deep=True), tmp_path, Progress(on_pass)
        )
        for on_pass in (lambda windows, *_: seen.append(windows), lambda *_: None)
    ]
    sharding.score([runners[1]], subject.windows, second := Hand(1))
    part = load_run(tmp_path, f"{sharding.PARTS}/1.json")
    assert [window.index for window in part.windows] == [window.index for window in subject.windows[3:6]]
    assert (part.noise_floor, part.audit.identity_is_exact) == (None, None)
    assert part.audit.zeroed_codes_move_logits == {}
    sharding.score([runners[0]], subject.windows, Hand(0, [second.done]))
    assert set(seen) == {range(0, 3), range(6, 8)}
    whole, _ = compare(contenders, options, subject=subject)
    assert load_run(tmp_path) == runners[0].run
    late = {"command": True, "status": True, "contenders": {"__all__": {"kl_999"}}}  # what `compare` adds at the end
    ours, theirs = (run.model_dump(exclude=late) for run in (runners[0].run, whole))
    assert ours == theirs


def test_what_torch_raises_when_the_other_is_gone_is_one_line(refused):
    def gone(*args, **kwargs):
        raise RuntimeError("[gloo/transport/tcp/pair.cc:547]\nConnection closed by peer")

    hand = Processes()
    hand.size = 2
    hand._distributed = SimpleNamespace(all_gather_object=gone, broadcast_object_list=gone)
    with refused("another process of this run ended"):
        hand.gather(1)
    with refused("the same command goes on"):
        hand.from_first(lambda: 1)


def test_a_world_without_an_address_is_refused(monkeypatch, refused):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with refused("MASTER_ADDR.* is not set: start the command with torchrun"):
        Processes()


def test_processes_that_would_score_something_else_are_refused(halves, refused):
    settings = halves[0].settings
    _check_alike([settings, settings])
    with refused("process 1 of 2 differs from the first in device, dtype"):
        _check_alike([settings, settings.model_copy(update={"dtype": "float16", "device": "H100"})])


class Store:
    def __init__(self):
        self.counts = {}

    def add(self, key, amount):
        self.counts[key] = self.counts.get(key, 0) + amount
        return self.counts[key]


def test_the_first_process_takes_the_first_and_the_others_what_is_left():
    store, hands = Store(), []
    for rank in (0, 1):
        hand = Processes()
        hand.rank, hand.size, hand._store = rank, 2, store
        hands.append(hand)
    others = hands[1].deal("abcdef", first=2)
    taken = [next(others)]
    assert list(hands[0].deal("abcdef", first=2)) == [(0, "a"), (1, "b"), (3, "d"), (4, "e"), (5, "f")]
    assert taken + list(others) == [(2, "c")]
    again = [list(hand.deal("xy", first=0)) for hand in hands]
    assert again == [[(0, "x"), (1, "y")], []]


def test_a_process_that_is_not_the_first_says_only_what_ended_it(kvdelta, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert kvdelta("schemes") == (0, "", "")
    code, out, err = kvdelta("show", "nowhere")
    assert (code, out) == (2, "")
    assert err.startswith("kvdelta, process 1 of 2: nowhere is no run folder")


def test_other_commands_are_refused(kvdelta, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    code, _, err = kvdelta("errors")
    assert (code, "only compare and reproduce trap share their windows" in err) == (2, True)


def test_a_process_without_a_gpu_of_its_own_is_refused(monkeypatch, refused):
    monkeypatch.setenv("LOCAL_RANK", "64")
    assert own_device("cpu") == "cpu"
    with refused("process 65 on this machine has no GPU of its own"):
        own_device("cuda")
