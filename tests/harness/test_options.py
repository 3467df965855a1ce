"""Options that do not go together are refused before anything is loaded, and the seed is what its help says."""

import json
from dataclasses import replace

import pytest

from kvdelta.harness.comparison import compare
from kvdelta.harness.options import Options
from kvdelta.schemes import parse_scheme


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"seed": -1}, "seed=-1: generators take 0 or more"),
        ({"offset": -1}, "offset=-1: the first window begins at token 0 or later"),
        ({"seed": 2**63}, "below 2\\^63; give --seed 0"),
        ({"protocol": "one-pass"}, "choose two-pass, stepwise or single-pass"),
        ({"protocol": "stepwise"}, "give --step 16"),
        ({"protocol": "stepwise", "step": 0}, "chunks of 1 token or more"),
        ({"step": 16}, "add --protocol stepwise or leave it out"),
        ({"bos": "never ever"}, "choose auto, always or never"),
        ({"device_map": "everywhere"}, "choose auto, balanced, balanced_low_0, sequential"),
        ({"device_map": "auto", "device": "cpu"}, "leave one of them out"),
    ],
)
def test_refused(values, message, refused):
    with refused(message):
        Options(**values)


def test_the_largest_seed_is_taken_by_all_that_draw(subject, options):
    run, _ = compare(["turboquant:bits=2,seed=5"], replace(options, seed=2**63 - 1), subject=subject)
    assert run.settings.seed == 2**63 - 1


def test_a_scheme_draws_with_its_own_seed(subject, options, tmp_path):
    """Whatever --seed is; so the seed is part of its name, and losses belong to the name."""
    losses = {}
    for seed, out in ((0, "a"), (7, "b")):
        specs = ["turboquant:bits=2", "turboquant:bits=2,seed=7"]
        run, _ = compare(specs, replace(options, seed=seed, out=str(tmp_path / out)), subject=subject)
        losses[seed] = [window.nll for window in run.windows]
    assert json.dumps(losses[0]) == json.dumps(losses[7])
    assert all(nll[1] != nll[2] for nll in losses[0])
    assert parse_scheme("turboquant:seed=7").name == "turboquant:bits=4,seed=7"
