"""Foreign caches in a run: labelled, measured by what they hold, and when they fail only their own row does."""

import importlib.util
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.testing._internal.two_tensor import TwoTensor
from transformers import DynamicCache, QuantizedCache, cache_utils
from transformers.cache_utils import HQQQuantizedLayer

from kvdelta.analysis.cli.runs import ROW_FAILED, report_failures
from kvdelta.analysis.cli.trap_contenders import stock_hqq
from kvdelta.analysis.reading import run_tables, summary
from kvdelta.analysis.reading.trap import trap_verdict
from kvdelta.harness.caches.contenders import SchemeContender, contender_of
from kvdelta.harness.caches.foreign import ForeignContender, note_of
from kvdelta.harness.caches.holdings import measured
from kvdelta.harness.caches.scheme import SchemeCache
from kvdelta.harness.comparison import compare
from kvdelta.harness.failures import failures
from kvdelta.harness.protocols import fill_live, prefill
from kvdelta.harness.records.run_folder import load_run
from kvdelta.harness.runner import Progress
from kvdelta.schemes import parse_scheme

OURS = ["int8:group_size=16", "asym2:group_size=16"]


def rows_of(run):
    return {row.scheme: row for row in summary.summarize(run)}


def test_transformers_caches_in_our_table(subject, options):
    """Of 3072 numbers a side and layer: 4 bits and two numbers a group of 64, which count 16 bits each."""
    small = "hf-hqq:bits=2,axis=1,group_size=16"
    run, _ = compare(["hf-hqq4", small, *OURS], options, subject=subject)
    rows = rows_of(run)
    assert run.audit.failures == {}
    assert (rows["hf-hqq4"].bits, rows[small].bits) == (4 + 32 / 64, 2 + 32 / 16)
    assert run.contenders[1].bytes["both"].held == {"uint8": 4 * 1536, "float32": 4 * 2 * 48 * 4}
    assert run.contenders[1].bytes["both"].elements == 2 * 96 * 2 * 16 * 2  # sides, tokens, heads, channels, layers
    assert run.contenders[2].spec["axis_key"] == run.contenders[2].spec["axis_value"] == 1
    flushes = "re-quantizes everything at each flush"
    assert run_tables.notes(list(rows.values())) == [
        f"hf-hqq4: groups of strided tokens across heads (axis 0); {flushes}",
        f"{small}: groups of neighbouring channels of one token (axis 1); {flushes}",
    ]
    assert [summary.find(run, name) for name in ("hf-hqq:bits=4", "hf-hqq4")] == [1, 1]


@pytest.mark.skipif(not hasattr(cache_utils, "Fp8QuantizedLayer"), reason="this transformers has no fp8 cache")
def test_fp8_reads_its_own_tokens_in_fp8_too(subject, options):
    run, _ = compare(["hf-fp8", "int8:group_size=16"], options, subject=subject)
    rows = rows_of(run)
    assert run.audit.failures == {}
    assert rows["hf-fp8"].bits == pytest.approx(8 + 16 / 3072, abs=1e-12)  # and one scale a side and layer
    assert rows["hf-fp8"].key_coverage > 0.99 > rows["int8:group_size=16"].key_coverage
    assert "frozen at the first update; new tokens come back in fp8 too" in rows["hf-fp8"].note


@pytest.mark.skipif(importlib.util.find_spec("optimum") is None, reason="optimum-quanto is not installed")
@pytest.mark.parametrize("axis", [0, -1])
def test_quanto_is_measured(subject, options, axis):
    run, _ = compare([f"hf-quanto4:axis={axis}", f"hf-quanto2:axis={axis}"], options, subject=subject)
    rows = list(rows_of(run).values())
    assert run.audit.failures == {}
    assert [row.bits for row in rows[1:]] == [4 + 32 / 64, 2 + 32 / 64]  # codes, scale and shift


def test_notes_say_which_numbers_share_a_scale():
    strided, channels, flattened = note_of("hqq", 0, 0), note_of("quanto", 0, 0), note_of("quanto", -1, -1)
    assert strided == stock_hqq(4).note
    assert "strided tokens across heads" in strided
    assert "neighbouring channels of one token" in channels
    assert "straddling heads unless the group size divides the tokens" in flattened
    assert note_of("hqq", 0, 1).startswith("K: groups of strided tokens")


def test_settings_are_passed_on(model):
    layer = contender_of("hf-hqq:bits=3,key_axis=1,group_size=32,residual_length=8").empty(model).layers[0]
    found = (layer.nbits, layer.axis_key, layer.axis_value, layer.q_group_size, layer.residual_length)
    assert found == (3, 1, 0, 32, 8)
    stock = QuantizedCache("hqq", model.config).layers[0]
    ours = contender_of("hf-hqq").empty(model).layers[0]
    assert vars(ours) == vars(stock)  # the defaults are transformers' own
    assert contender_of("hf-hqq2:axis=1").name == "hf-hqq:bits=2,axis=1"


BAD = {
    "hf-hqq:bits=5": "bits='5' is not one of 1, 2, 3, 4, 8",
    "hf-quanto:bits=8": "bits='8' is not one of 2, 4",
    "hf-quanto:axis=1": "key_axis='1' is not one of 0, -1; did you mean -1",
    "hf-hqq:axis=0,key_axis=1": "key_axis is set twice",
    "hf-hqq:group_size=0": "group_size=0: give 1 or more",
    "hf-fp8:bits=4": "no field 'bits'; known: none",
    "hf-hq:bits=4": "no scheme 'hf-hq'; did you mean 'hf-hqq'",
    "int5": "no scheme 'int5'; did you mean 'int",
}


@pytest.mark.parametrize("spec", BAD)
def test_bad_specs(spec, refused):
    with refused(BAD[spec]):
        contender_of(spec)


class Holder(DynamicCache):
    """An exact cache with things beside its layers."""

    def __init__(self, config, **things):
        super().__init__(config=config)
        self.things = things


class Slotted:
    __slots__ = ("kept",)


def counted(model, subject, **things):
    cache = Holder(model.config, **things)
    window = subject.windows[0]
    fill_live(model, window.prefix, cache)
    found = measured(cache, prefill(model, window.prefix), torch.float32)
    return found and (found["both"].held, found["both"].counted - 2 * found["both"].elements)


EXACT = 2 * 2 * 96 * 2 * 16 * 4


def test_what_is_held_is_found_wherever_it_lies(model, subject):
    codes = torch.zeros(100, dtype=torch.uint8)
    slotted = Slotted()
    slotted.kept = [codes]
    both = {"float32": EXACT, "uint8": 100}
    assert counted(model, subject) == ({"float32": EXACT}, 0)
    for thing in (codes, {"meta": {"codes": codes}}, ((codes,),), slotted, {1: codes, 2: codes}):
        assert counted(model, subject, thing=thing) == (both, 100)
    assert counted(model, subject, a=codes[:10], b=codes[50:]) == (both, 100)  # one storage, once and whole
    assert counted(model, subject, thing=TwoTensor(codes, codes.clone())) == ({"float32": EXACT, "uint8": 200}, 200)
    scale = torch.zeros(8, dtype=torch.float16)
    assert counted(model, subject, scale=scale) == ({"float32": EXACT, "float16": 16}, 16)


def test_what_is_no_storage_is_not_counted(model, subject):
    things = {"llm": model, "kind": torch.float16, "method": model.forward, "rows": range(3), "text": "x"}
    assert counted(model, subject, **things) == ({"float32": EXACT}, 0)


class Hidden(DynamicCache):
    """Keeps everything where nobody sees it."""

    def __init__(self, config):
        super().__init__(config=config)
        inner = DynamicCache(config=config)
        self.take = lambda *args, **kwargs: inner.update(*args, **kwargs)
        self.length = inner.get_seq_length

    def update(self, *args, **kwargs):
        return self.take(*args, **kwargs)

    def get_seq_length(self, layer_idx=0):
        return self.length()

    def get_mask_sizes(self, query_length, layer_idx):
        return self.length() + query_length, 0


class InNumpy(DynamicCache):
    """Holds something that cannot be counted beside what can."""

    def __init__(self, config):
        super().__init__(config=config)
        self.codes = np.zeros(3)


@pytest.mark.parametrize("kind", [Hidden, InNumpy])
def test_bytes_that_cannot_be_known_are_not_guessed(subject, options, kind):
    run, _ = compare([ForeignContender("foreign", kind)], options, subject=subject)
    assert run.contenders[1].bytes is None
    run.audit.failures = {}  # it is exact in truth
    header, body = run_tables.cells(list(rows_of(run).values()))
    assert dict(zip(header, body[1], strict=True))["bits"] == "not measurable"


def test_a_layer_without_a_tensor_is_not_enough(model, subject):
    prefilled = prefill(model, subject.windows[0].prefix)
    cache = prefill(model, subject.windows[0].prefix)
    cache.layers[1].keys = cache.layers[1].values = None
    assert measured(cache, prefilled, torch.float32) is None
    assert measured(object(), prefilled, torch.float32) is None


class Broken(DynamicCache):
    def __init__(self, config, calls):
        super().__init__(config=config)
        self.left = calls

    def update(self, *args, **kwargs):
        self.left -= 1
        if self.left < 0:
            raise RuntimeError("no more\nand so on")
        return super().update(*args, **kwargs)


class Poisoned(DynamicCache):
    def update(self, *args, **kwargs):
        keys, values = super().update(*args, **kwargs)
        return keys, values * float("nan")


def unmade(config):
    raise OSError("no such backend")


FAILING = {
    "made": (unmade, "OSError: no such backend"),
    "nothing made": (lambda config: None, "AttributeError: "),
    "filled": (lambda config: Broken(config, 1), "RuntimeError: no more"),
    "scored": (lambda config: Broken(config, 3), "RuntimeError: no more"),
    "not finite": (lambda config: Poisoned(config=config), "NaN or infinite logits in window 0 (tokens from 0)"),
}


@pytest.mark.parametrize("when", FAILING)
def test_a_foreign_failure_is_its_own_row(subject, options, tmp_path, when):
    factory, reason = FAILING[when]
    notes = []
    run, folder = compare(
        [OURS[0], ForeignContender("bad", factory), OURS[1]],
        options,
        subject=subject,
        progress=Progress(on_note=notes.append),
    )
    alone, _ = compare(OURS, replace(options, out=str(tmp_path / "alone")), subject=subject)
    assert run.contenders[2].error.startswith(reason)
    assert "\n" not in run.contenders[2].error
    assert any(note.startswith(f"bad failed, the others go on: {reason}") for note in notes)
    assert list(run.audit.failures) == ["bad"]
    there, here = rows_of(run), rows_of(alone)
    assert {label: row for label, row in there.items() if label != "bad"} == here  # Holm's correction too
    assert all(np.isnan(w.nll[2]) and w.pairs[2] == 0 for w in run.windows)
    content = json.loads((folder / "run.json").read_text(), parse_constant=pytest.fail)
    assert content["windows"][0]["nll"][2] is None
    loaded = load_run(folder)
    assert loaded.model_dump_json() == run.model_dump_json()
    assert failures(loaded) == run.audit.failures
    _, body = run_tables.cells(list(there.values()))
    assert body[2] == ["bad", "–", "–", "failed", *["–"] * 9]
    assert run_tables.notes(list(there.values())) == [f"bad: failed: {run.contenders[2].error}"]
    with pytest.raises(ValueError, match="bad failed, so there are no deltas against it"):
        summary.summarize(loaded, "bad")


def test_two_failed_rows_are_no_twins(subject, options):
    bad = [ForeignContender(name, unmade) for name in ("one", "two")]
    _, folder = compare(bad, options, subject=subject)
    reason = ["it failed: OSError: no such backend"]
    assert failures(load_run(folder)) == {"one": reason, "two": reason}


def test_a_failure_in_a_later_window(subject, options):
    """It has losses of the first window, and no score: not run again, also when the run is continued."""
    made = []

    def factory(config):
        made.append(config)
        return Broken(config, 1000 if len(made) < 2 else 0)

    def stop(windows, contender, label, nll):
        if windows.start == 2:
            raise KeyboardInterrupt

    bad = ForeignContender("bad", factory)
    with pytest.raises(KeyboardInterrupt):
        compare([bad, *OURS], options, subject=subject, progress=Progress(stop))
    run, _ = compare([bad, *OURS], options, subject=subject)
    assert len(made) == 2
    assert [np.isfinite(w.nll[1]) for w in run.windows] == [True, False, False]
    assert run.contenders[1].bytes is not None
    assert rows_of(run)["bad"].error == "RuntimeError: no more"
    assert np.isnan(summary.perplexities(run)[1])
    shown, sentences = trap_verdict(run, run)
    assert (shown, "bad failed" in sentences[0]) == (False, True)


@pytest.mark.parametrize("error", [RuntimeError("ours"), SystemExit(3), AssertionError()], ids=str)
def test_a_scheme_of_ours_that_raises_fails_its_own_row(subject, options, error):
    class Faulty(SchemeContender):
        def fill(self, cache, model, batch, prefilled):
            raise error

    faulty = Faulty("faulty", parse_scheme("int8:group_size=16"))
    run, _ = compare([faulty, *OURS], options, subject=subject)
    assert run.contenders[1].error == f"{type(error).__name__}: {str(error) or type(error).__name__}"
    assert run.status == "complete"
    assert report_failures(run) == ROW_FAILED
    alone, _ = compare(OURS, replace(options, out=f"{options.out}-alone"), subject=subject)
    assert [window.nll[-1] for window in run.windows] == [window.nll[-1] for window in alone.windows]


def test_exact_that_raises_ends_the_run(subject, options, monkeypatch):
    def broken(self, *args, **kwargs):
        raise RuntimeError("ours")

    monkeypatch.setattr(SchemeCache, "fill", broken)
    with pytest.raises(RuntimeError, match="ours"):
        compare(["int8:group_size=16"], options, subject=subject)


@pytest.mark.skipif(importlib.util.find_spec("optimum") is not None, reason="optimum-quanto is installed")
def test_a_missing_backend_says_what_to_install(subject, options):
    run, _ = compare(["hf-quanto4:axis=-1", "int8:group_size=16"], options, subject=subject)
    assert "pip install optimum-quanto" in run.contenders[1].error
    assert "straddling heads" in run.contenders[1].note
    assert list(run.audit.failures) == ["hf-quanto4:axis=-1"]


def test_stock_caches_drift_and_ours_do_not(model):
    """transformers re-quantizes everything at each flush: after 8 the first tokens are off further than after 1 (×2.1 to
    ×2.8 as probed). Ours decode to the same bits throughout."""
    x = torch.randn(1, 2, 192, 16)
    stock = HQQQuantizedLayer(nbits=4, q_group_size=64, residual_length=16)
    ours = SchemeCache(parse_scheme("asym4:group_size=16"), model.config)
    errors, decoded = [], []
    for chunk in x.split(16, dim=2):
        keys, _ = stock.update(chunk, chunk)
        errors.append((keys[:, :, :16] - x[:, :, :16]).norm().item())
        decoded.append(ours.update(chunk, chunk, 0)[0][:, :, :16])
    assert errors[0] == 0  # the forward that writes gets what it wrote
    assert errors[8] > 1.5 * errors[1]
    assert all(torch.equal(again, decoded[1]) for again in decoded[2:])


FACTORIES = """
from transformers import QuantizedCache
def hqq(config, bits=4, group=16): return QuantizedCache("hqq", config, nbits=bits, q_group_size=group)
def broken(config): raise RuntimeError("no such thing")
"""


def test_caches_from_the_command_line(kvdelta, tmp_path):
    (tmp_path / "own_caches.py").write_text(FACTORIES)
    words = [
        "compare",
        "--scheme",
        "int8:group_size=16",
        "--scheme",
        "sink-window:bits=4",
        "--windows",
        "2",
        "--out",
        "run",
    ]
    caches = [
        "--cache",
        "own_caches:hqq(bits=2, group=32)",
        "--cache",
        "own_caches:hqq",
        "--cache",
        "own_caches:broken",
    ]
    code, out, err = kvdelta(*words, *caches)
    assert code == 4
    assert "\nfailed: own_caches:broken: RuntimeError: no such thing\n" in err
    lines = {
        label: line for line in out.splitlines() for label in caches[1::2] if line.strip().startswith(label + "  ")
    }
    assert [("3.00" in lines[caches[1]]), ("6.00" in lines[caches[3]]), ("failed" in lines[caches[5]])] == [True] * 3
    assert "sink-window:bits=4 † (changes what is attended): attends to the first 4" in out
    assert out.rstrip().endswith("own_caches:broken: failed: RuntimeError: no such thing")
    own = load_run("run").contenders[3]
    assert own.name == f"own_caches#{own.spec['sha256'][:8]}:hqq(bits=2, group=32)"
    code, again, _ = kvdelta("show", "run")
    assert (code, again) == (4, out)
    _, markdown, _ = kvdelta("show", "run", "--format", "md")
    assert "\nown_caches:broken: failed: RuntimeError: no such thing\n" in markdown
    code, out, _ = kvdelta("show", "run", "--baseline", "own_caches:hqq", "--format", "json")
    assert json.loads(out, parse_constant=pytest.fail)["rows"][5]["error"] == "RuntimeError: no such thing"


BAD_CACHES = {
    "own_caches:hqq(4)": "an argument without a name; give keyword arguments in parentheses, such as hqq\\(window=64\\)",
    "own_caches:hqq(**{})": "an argument without a name",
    "own_caches:hqq(bits=four)": "bits=four is no Python literal; give a number",
    "own_caches:hqq(bits=4": "cannot be read",
    "own_caches:hqq(bits=4).x": "is more than one call",
    "own_caches:hqq(bits={[1]: 2})": "bits=\\{\\[1\\]: 2\\} is no Python literal",
    "own_caches:hqq(bits=2, bits=4)": "bits is given twice",
    "own_caches:hqq(bit=4)": "cannot be called so: got an unexpected keyword argument 'bit'",
    "own_caches:hqqq": "own_caches has no callable 'hqqq'",
    "own_caches": "give module:factory",
    "bad_syntax:make": "bad_syntax cannot be imported",
    "raises:make": "raises cannot be imported: ZeroDivisionError: division by zero",
    "leaves:make": "leaves cannot be imported: SystemExit: 3",
    "no.such:make": "no.such cannot be imported: ModuleNotFoundError: No module named 'no'",
    ":make": "cannot be imported",
    ".own_caches:make": "cannot be imported",
    f"own_caches:hqq(bits={'(' * 300}": "cannot be read",
}


@pytest.mark.parametrize("path", BAD_CACHES)
@pytest.mark.parametrize("command", ["compare", "audit"])
def test_bad_caches_are_one_clear_line(kvdelta, tmp_path, refused, command, path):
    (tmp_path / "own_caches.py").write_text(FACTORIES)
    (tmp_path / "bad_syntax.py").write_text("def make(:")
    (tmp_path / "raises.py").write_text("1 / 0")
    (tmp_path / "leaves.py").write_text("import sys; sys.exit(3)")
    code, out, err = kvdelta(command, "--cache", path)
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    with refused(BAD_CACHES[path]):
        raise ValueError(err.strip())
