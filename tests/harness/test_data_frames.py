"""A run as pandas frames: the same figures as its record."""

import builtins

import numpy as np
import pytest

from kvdelta.harness import compare, frames
from kvdelta.schemes.errors import UserError

pytest.importorskip("pandas")


@pytest.fixture
def made(subject, options):
    run, _ = compare(["int4:group_size=16"], options, subject=subject)
    return run, options.out


def test_windows_and_tokens_say_what_the_record_says(made):
    _, folder = made
    found = frames(folder)
    assert list(found.windows.columns)[:4] == ["window", "start", "scheme", "scored"]
    assert len(found.windows) == 3 * 2
    assert len(found.tokens) == 3 * 2 * 31
    by_window = found.tokens.groupby(["window", "scheme"])[["nll", "kl", "tvd"]].mean().reset_index()
    joined = found.windows.merge(by_window, on=["window", "scheme"], suffixes=("", "_of_tokens"))
    for name in ("nll", "kl", "tvd"):
        np.testing.assert_allclose(joined[name], joined[f"{name}_of_tokens"], rtol=1e-5)
    quantized = found.windows[found.windows["scheme"] != "exact"]
    assert (quantized["key_coverage"] > 0).all()
    assert (found.windows[found.windows["scheme"] == "exact"]["kl"] == 0).all()


def test_positions_are_those_of_the_text(made, tokens, model):
    """The token at a position is the one whose loss stands there: scored again by hand."""
    import torch

    run, folder = made
    table = frames(folder).tokens
    window = run.windows[1]
    logits = model(tokens[None, window.start : window.start + 128]).logits[0]
    chosen = table[(table["window"] == window.index) & (table["scheme"] == "exact")]
    at = int(chosen["position"].iloc[7])
    by_hand = torch.nn.functional.cross_entropy(logits[at - window.start - 1], tokens[at])
    assert chosen["nll"].iloc[7] == pytest.approx(float(by_hand), abs=1e-4)
    assert int(chosen["position"].iloc[-1]) == window.start + 127


def test_a_run_alone_has_no_tokens(made):
    run, folder = made
    assert frames(run).tokens is None
    assert frames(run).rows is None
    assert len(frames(run, folder).tokens) == 3 * 2 * 31


def test_without_pandas_the_extra_is_named(made, monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "pandas":
            raise ModuleNotFoundError("No module named 'pandas'", name="pandas")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=r"pip install 'kvdelta\[parquet\]'"):
        frames(made[1])
