"""A model's heads over two processes on a CPU, as torchrun starts them: the record of one process but for round-off."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, LlamaForCausalLM

from kvdelta.harness.audit import Observer
from kvdelta.harness.caches.contenders import SchemeContender, contenders_of
from kvdelta.harness.controls import check_zeroed_codes
from kvdelta.harness.options import Options
from kvdelta.harness.passes import Passes
from kvdelta.harness.processes import Processes
from kvdelta.harness.protocols import prefill
from kvdelta.harness.records.run import Audit, Bytes, Run
from kvdelta.harness.records.run_folder import load_run
from kvdelta.harness.runner import Runner, score
from kvdelta.harness.settings import header_of, settings_of
from kvdelta.harness.subject.prepared import prepare
from kvdelta.harness.subject.spreading import check_heads, check_plan, check_same_logits, spread_over
from kvdelta.harness.subject.windows import Batch

from ..conftest import tiny_config, tiny_model

ROOT = Path(__file__).parents[2]
ROWS = [
    "int8:group_size=16",
    "unbiased(asym4:group_size=16)",
    "kivi:bits=2,group_size=8,residual_length=16",
    "turboquant:bits=2",
    "fp8:scale=none",
    "exact:keep_recent=8,sink_tokens=2",
    "sink-window:bits=4",
]
READING = ("--protocol", "two-pass", "--protocol", "stepwise", "--step", "8")
SINGLE = ("--protocol", "single-pass", "--batch", "auto", "--windows", "20", "--until-se", "100")  # it stops after 16

# Commands one after another; where a file says so the first process ends after its first batch, and a row of the last raises in
# the second process alone
SCRIPT = """
import os, signal, sys
from pathlib import Path
from kvdelta.analysis.cli.main import main
from kvdelta.harness.caches.contenders import SchemeContender
from kvdelta.harness.records import journal

append, fill, entries = journal.append, SchemeContender.fill, []

def deadly(path, content):
    append(path, content)
    entries.append(path)
    if Path("deadly").exists() and len(entries) == 2:  # one of each protocol
        os.kill(os.getpid(), signal.SIGKILL)

def picky(self, cache, model, batch, prefilled):
    if sys.argv[-1] == "picky" and os.environ["RANK"] == "1" and self.label.startswith("turboquant"):
        raise RuntimeError("only here")
    fill(self, cache, model, batch, prefilled)

journal.append, SchemeContender.fill = deadly, picky
given = sys.argv[1:]
while given:
    at = given.index("compare", 1) if "compare" in given[1:] else len(given)
    sys.argv[1:], given = given[:at], given[at:]
    try:
        main()
    except SystemExit as stop:
        if stop.code not in (0, 3):  # a single pass fails the audit
            raise
"""


@pytest.fixture
def words(files, tmp_path):
    """The folder of a model with 4 KV heads, in two of which keys are louder than in the others, and with a bias; a text."""
    torch.manual_seed(0)
    config = tiny_config(num_attention_heads=8, num_key_value_heads=4, head_dim=16, attention_bias=True)
    model = LlamaForCausalLM(config)
    for layer in model.model.layers:
        layer.self_attn.k_proj.bias.data.normal_().unflatten(0, (4, 16))[2:] *= 3
    model.save_pretrained(tmp_path / "model")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "model" / name).write_bytes((files / "model" / name).read_bytes())
    (tmp_path / "script.py").write_text(SCRIPT)
    subject = ["--model", str(tmp_path / "model"), "--text", str(files / "text.txt"), "--device", "cpu"]
    sizes = ["--window-length", "128", "--score-length", "32", "--windows", "4", "--batch", "2"]
    rows = [word for row in ROWS for word in ("--scheme", row)]
    return ["compare", *subject, *sizes, *rows]


@pytest.fixture
def launched(words, tmp_path):
    """Runs commands with these flags."""

    def launch(*commands):
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "script.py"]
        given = [word for flags in commands for word in (*words, "--tensor-parallel", *flags)]
        return subprocess.run(
            [*command, *given],
            cwd=tmp_path,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=300,
        )

    return launch


def close(a, b, tolerance):
    return torch.allclose(torch.tensor(a), torch.tensor(b), rtol=tolerance, atol=tolerance)


def check_alike(one, two):
    """What is counted is equal, what is computed is so but for round-off, which may flip a code."""
    assert (one.settings.tensor_parallel, two.settings.tensor_parallel) == (1, 2)
    counted = {"contenders": {"__all__": {"kl_999"}}, "audit": True, "windows": True, "noise_floor": True}
    counted |= {"command": True, "flags": True, "summary": True, "settings": {"tensor_parallel"}}
    assert one.model_dump(exclude=counted) == two.model_dump(exclude=counted)
    assert one.audit == two.audit
    assert two.audit.identity_is_exact
    for a, b in zip(one.windows, two.windows, strict=True):
        assert (a.index, a.pairs, a.key_pairs, a.value_pairs) == (b.index, b.pairs, b.key_pairs, b.value_pairs)
        assert close(a.nll[0], b.nll[0], 1e-6)
        assert close(a.nll, b.nll, 1e-3)
        assert close(a.kl, b.kl, 1e-3)
    assert one.noise_floor.routes.keys() == two.noise_floor.routes.keys()
    assert two.noise_floor.kl < 1e-9


def test_two_processes_leave_the_record_of_one(kvdelta, words, launched, tmp_path):
    """By each protocol; killed after the first batch, and told to go on. A row that fails in one process then ends both."""
    (tmp_path / "deadly").touch()
    killed = launched((*READING, "--out", "two"))
    assert "Signal 9 (SIGKILL) received by PID" in killed.stderr
    left = [load_run(f"two/{protocol}") for protocol in ("two-pass", "stepwise-8")]
    assert [(run.status, len(run.windows)) for run in left] == [("running", 2)] * 2
    (tmp_path / "deadly").unlink()
    done = launched((*READING, "--out", "two"), (*SINGLE, "--out", "two/single-pass"), ("--out", "picky"))
    assert done.stderr.count("2 of 4 windows are there") == 2
    tables = [kvdelta(*words, *how, "--out", out) for how, out in ((READING, "one"), (SINGLE, "one/single-pass"))]
    assert len(done.stdout.splitlines()) == sum(len(table.splitlines()) for _, table, _ in tables)
    for protocol in ("two-pass", "stepwise-8", "single-pass"):
        check_alike(load_run(f"one/{protocol}"), load_run(f"two/{protocol}"))
    timings = json.loads((tmp_path / "two" / "two-pass" / "timings.json").read_text())
    assert (timings["processes"], len(timings["seconds"]["prefill"])) == (2, 2)
    code, _, err = kvdelta(*words, *READING, "--out", "two")
    assert (code, "differs in tensor_parallel" in err) == (2, True)
    assert "process 1 of 2: turboquant:bits=2 failed, and with it the run" in done.stderr
    assert "RuntimeError: only here; finished windows are kept" in done.stderr
    assert done.stderr.count("--drop turboquant:bits=2 goes on") == 1  # the other process does not take it for its own
    assert (done.returncode, "fault of kvdelta" in done.stderr) == (1, False)


class Pair(Processes):
    """One of two processes that are alike, without the other."""

    def __init__(self):
        self.rank, self.size = 0, 2

    def gather(self, mine):
        return [mine, mine]


class Hungry(SchemeContender):
    def fill(self, cache, model, batch, prefilled):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


@pytest.mark.parametrize(
    ("windows", "said"), [(2, "begin again with --batch 1"), (1, "OutOfMemoryError: CUDA out of memory.*--drop")]
)
def test_out_of_memory_in_one_process_ends_it(windows, said, subject, options, tmp_path, refused):
    contenders = [*contenders_of([]), Hungry.of("int8:group_size=16")]
    settings = settings_of(options, subject, [contender.name for contender in contenders])
    run = Run(**header_of(options, subject, settings), contenders=[], batch=windows)
    runner = Runner(Passes(subject.loaded.model, contenders, spread=Pair()), "tiny", run, tmp_path)
    with refused(said):
        score([runner], subject.windows)
    assert runner.run.windows == []


def test_what_a_process_has_counts_for_its_part(subject):
    """Of two processes with the same heads bytes are twice those of one; a pair that any head does not return counts once."""
    contender = SchemeContender.of("fp8:scale=none")
    model, batch = subject.loaded.model, torch.zeros(1, 2, 32, 16)
    cache = contender.empty(model)
    for layer in range(2):
        cache.update(batch + 1e6, batch, layer)
    mine, of_two = (contender.record(model, cache, None, gather) for gather in (lambda x: [x], lambda x: [x, x]))
    assert of_two.bytes == {side: Bytes.total([one, one]) for side, one in mine.bytes.items()}
    assert of_two.bytes["key"].elements == 2 * mine.bytes["key"].elements > 0
    assert (mine.note[:5], of_two.note[:5]) == ("2048 ", "4096 ")


def test_a_pair_counts_as_read_where_any_head_returns_another_row(model):
    class Rounding(torch.nn.Module):
        def update(self, keys, values, layer):
            return keys, values

        def get_mask_sizes(self, queries, layer):
            return queries, 0

    lost = torch.zeros(3, dtype=torch.long)
    lost[1] = 1
    observer = Observer(Rounding(), 3, [0], False, gather=lambda mine: [mine, [lost, 0 * lost]])
    observer.watch()
    rows = torch.ones(1, 1, 3, 4)
    observer.cache.update(rows, rows, 0)
    reads = observer.stop().reads[0]
    assert (reads.pairs, reads.key, reads.value) == (6, 2, 0)  # by the second query and the third


class HalfZeroed(SchemeContender):
    """Of which the second layer keeps its codes."""

    def zero_codes(self, cache):
        for layer, _, store in cache.stores():
            if layer == 0:
                store.zero_codes()
        return True


def test_a_layer_moves_where_any_head_does(model, subject):
    contender, batch = HalfZeroed.of("int8:group_size=16"), Batch(tuple(subject.windows[:2]))
    unmoved = []
    for others in (0, 1):
        cache = contender.empty(model).fill(prefill(model, batch.prefix))
        audit = Audit()
        gather = lambda mine, others=others: [mine, [one * 0 + others for one in mine]]  # noqa: E731
        check_zeroed_codes(audit, contender, model, batch, cache, None, gather)
        unmoved.append(audit.unmoved_by_zeroed_codes[contender.label])
    assert unmoved == [{"key": [1], "value": [1]}, {"key": [], "value": []}]


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ("fp8:scale=tensor", "one scale for all heads of a block"),
        ("hqq4:stop=reference", "hqq4:stop=reference: "),
        ("matched(oscar:bits=2):tail=8", "one norm a token over all KV heads"),
        ("gear(kcvt4):sides=value", "outliers of a token over all heads"),
        ("hf-hqq:bits=4", "it may take heads together"),
    ],
)
def test_rows_that_take_heads_together_are_refused_before_anything_is_loaded(row, why, kvdelta):
    code, out, err = kvdelta("compare", "--tensor-parallel", "--scheme", row, "--model", "nowhere/at-all")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert why in err
    assert "with --tensor-parallel each process has some of the heads" in err


def test_one_process_is_refused(kvdelta):
    code, _, err = kvdelta("compare", "--tensor-parallel")
    assert (code, "there is one: start several with torchrun" in err) == (2, True)


@pytest.mark.parametrize("command", ["errors", "replay", "audit", "sweep", "tasks"])
def test_other_commands_have_no_such_flag(command, kvdelta):
    code, _, err = kvdelta(command, "--tensor-parallel")
    assert (code, "No such option: --tensor-parallel" in err) == (2, True)


@pytest.mark.parametrize(
    ("other", "said"), [({"device_map": "auto"}, "over the devices of one"), ({"time_limit": 5.0}, "go on together")]
)
def test_what_does_not_go_with_it(other, said, refused):
    with refused(said):
        Options(tensor_parallel=True, **other)


def test_another_device_is_refused(files, monkeypatch, refused):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with refused("device=cpu: tensor_parallel takes cuda on this machine"):
        prepare(Options(text=str(files / "text.txt"), device="cpu", tensor_parallel=True))


def test_models_that_cannot_be_spread_are_refused(model, refused):
    check_plan(tiny_config(), "tiny", 2)
    with refused('"tiny" has 4 heads and 2 KV heads, which 4 processes cannot share evenly'):
        check_plan(tiny_config(), "tiny", 4)
    with refused(r'"gpt2" \(gpt2\) has no plan for tensor parallelism in transformers; --device-map auto'):
        check_plan(GPT2Config(), "gpt2", 2)
    assert spread_over(model) == 1
    whole = tiny_model()
    whole._tp_size = 2
    with refused("it has 2, and layer 0 caches 2 in each of 2 processes"):
        check_heads(whole, "tiny")
    check_same_logits(whole, lambda mine: [mine, mine])
    with refused("the 2 processes that this llama model is spread over come to other logits"):
        check_same_logits(whole, lambda mine: [mine, 2 * mine])
