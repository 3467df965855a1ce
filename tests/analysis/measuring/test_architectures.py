"""Every command on every architecture: it works, or it says in one line why not, before any window is computed."""

import functools
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from packaging.version import Version

from kvdelta.analysis.measuring.channel_statistics import measure_outliers
from kvdelta.analysis.measuring.errors import measure_errors
from kvdelta.analysis.measuring.sensitivity import measure_sensitivity
from kvdelta.harness.calibration import calibrate, spec_with
from kvdelta.harness.comparison import compare
from kvdelta.harness.options import Options
from kvdelta.harness.records.measurement import measured_arrays
from kvdelta.harness.subject.model import LoadedModel
from kvdelta.harness.subject.prepared import Subject
from kvdelta.harness.subject.probing import TOKENS
from kvdelta.harness.subject.text import Text
from kvdelta.harness.subject.windows import cut_windows

from ...architectures import FIELDS, tiny

SIZES = {"window_length": 48, "score_length": 16, "windows": 2, "device": "cpu"}
SCHEMES = ["int4:group_size=8", "kivi:bits=2,group_size=8,residual_length=8"]


def kvquant(options, subject):
    """Calibrated, then scored."""
    path = calibrate("kvquant:bits=3", subject, options.out + "-calibration")
    return compare(
        [spec_with("kvquant:bits=3", path)], Options(**SIZES, out=options.out, same_text=True), subject=subject
    )


def together(options, subject):
    """Both windows as batch rows: the exact losses are those of each alone, to what float32 sums in another order give."""
    done = compare(SCHEMES, replace(options, batch="2"), subject=subject)
    alone, _ = compare(["exact"], replace(options, batch="1", out=options.out + "-1"), subject=subject)
    assert done[0].batches == [2]
    for one, other in zip(done[0].windows, alone.windows, strict=True):
        assert abs(one.nll[0] - other.nll[0]) < one.count * 5e-5
    return done


def alike(measure):
    """Both windows at once, then one after the other: the sums are equal to what float32 gives in another order."""

    def both(options, subject):
        (record, folder), (alone, other) = (
            measure(replace(options, batch=batch, out=f"{options.out}-{batch}"), subject) for batch in ("2", "1")
        )
        expected = measured_arrays(other, alone)
        for name, array in measured_arrays(folder, record).items():
            scale = np.abs(expected[name]).max()
            np.testing.assert_allclose(array, expected[name], rtol=1e-2, atol=1e-3 * scale, err_msg=name)
        return record, folder

    return both


COMMANDS = {
    "compare": lambda options, subject: compare(SCHEMES, options, subject=subject),
    "compare, two windows at once": together,
    "compare, evicting": lambda options, subject: compare(["sink-window:tokens=8,sinks=2"], options, subject=subject),
    "kvquant": kvquant,
    "outliers": alike(lambda options, subject: measure_outliers(options, subject)),
    "outliers --pre-rope": alike(lambda options, subject: measure_outliers(options, subject, pre_rope=True)),
    "errors": alike(lambda options, subject: measure_errors(SCHEMES, options, subject)),
    "sensitivity": alike(lambda options, subject: measure_sensitivity(SCHEMES[:1], options, subject)),
}
CAUSAL = [name for name in FIELDS if name not in ("Bert", "XLM", "Mamba", "Mamba2", "Rwkv")]

BEFORE_5_24 = Version(transformers.__version__) < Version("5.24")
LATENT = ("DeepseekV2", "DeepseekV3")
BIASED = ("Falcon with ALiBi", "Bloom", "Mpt")
NO_ROTATION = dict.fromkeys(
    ("Cohere2", "DeepseekV3", "Falcon with ALiBi"), "rotates no key that it caches"
) | dict.fromkeys(
    ("GPT2", "OPT", "GPTBigCode", "Bloom", "Mpt", "DeepseekV2", "Jamba"), "no rotary module of the usual form"
)
UNKNOWN_ROTATION = {"GPTJ": "rotation cannot be undone|no rotary module"}  # before 5.24 it keeps a table of angles
NO_FULL_LAYER = dict.fromkeys(("FalconH1", "RecurrentGemma"), "no full-attention layer|no layer that keeps|go on from")
ONE_TOKEN = {"Jamba": "does not go on from its recurrent state"}
REFUSED = {
    "compare": ONE_TOKEN,
    "compare, two windows at once": ONE_TOKEN,
    "compare, evicting": ONE_TOKEN | dict.fromkeys(BIASED, "biases attention by the distance"),
    "kvquant": NO_ROTATION | UNKNOWN_ROTATION | ONE_TOKEN,
    "outliers": {},
    "outliers --pre-rope": {
        name: f"({why}).*; leave --pre-rope out" for name, why in (NO_ROTATION | UNKNOWN_ROTATION).items()
    },
    "errors": ONE_TOKEN
    | dict.fromkeys(LATENT, "attends to other keys and values than those that it caches")
    | dict.fromkeys(("Falcon", *BIASED), "does not go through transformers' attention interface")
    | {"GptOss": "attends in a way that its queries"}  # its softmax has a sink
    | ({"GPTJ": "does not go through transformers' attention interface"} if BEFORE_5_24 else {}),
    "sensitivity": ONE_TOKEN,
}


def subject_of(model):
    tokens = torch.randint(3, 128, (80,), generator=torch.Generator().manual_seed(1))
    windows = cut_windows(tokens, window_length=48, score_length=16, windows=2)
    loaded = LoadedModel(model, SimpleNamespace(bos_token_id=None), "tiny", {"kind": "test"})
    return Subject(loaded, Text("random", "", {"kind": "test"}), tokens, windows, None)


@pytest.mark.parametrize("name", CAUSAL)
@pytest.mark.parametrize("command", COMMANDS)
def test_it_works_or_says_why_not_before_any_window(command, name, tmp_path, monkeypatch, refused):
    model, lengths = tiny(name), []
    forward = model.forward

    @functools.wraps(forward)
    def counted(*args, **kwargs):
        lengths.append(kwargs["input_ids"].shape[1])
        return forward(*args, **kwargs)

    monkeypatch.setattr(model, "forward", counted)
    options = Options(**SIZES, out=str(tmp_path / "run"))
    reasons = NO_FULL_LAYER | REFUSED[command]
    if name not in reasons:
        record = COMMANDS[command](options, subject_of(model))[0]
        assert record.status == "complete"
    else:
        with refused(reasons[name]):
            COMMANDS[command](options, subject_of(model))
        assert max(lengths, default=0) <= TOKENS


def test_a_state_taken_up_for_one_token_only_is_scored_token_by_token(tmp_path):
    options = Options(**SIZES, protocol="stepwise", step=1, out=str(tmp_path / "run"))
    run, _ = compare(SCHEMES, options, subject=subject_of(tiny("Jamba")))
    assert run.noise_floor.kl < 1e-6
    assert run.audit.failures == {}
