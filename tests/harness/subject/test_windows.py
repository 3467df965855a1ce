from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kvdelta.harness.subject.windows import check_positions, cut_windows, grid_size

BOS = -1  # no token of a text below has this id


def text(length):
    """Tokens that are their own offsets, so that a token tells where it was cut."""
    return torch.arange(length)


@st.composite
def cuts(draw):
    """(tokens, settings of cut_windows, grid size), every setting allowed."""
    window_length = draw(st.integers(3, 40))
    score_length = draw(st.integers(2, window_length - 1))
    stride = draw(st.none() | st.integers(1, 50))
    n_tokens = draw(st.integers(window_length, 300))
    # counted one by one, so that it does not share grid_size's formula
    starts = range(0, n_tokens, stride or score_length)
    grid = sum(start + window_length <= n_tokens for start in starts)
    windows = draw(st.none() | st.integers(1, grid))
    how = {"window_length": window_length, "score_length": score_length, "stride": stride, "windows": windows}
    return text(n_tokens), how, grid


@settings(deadline=None)
@given(cuts())
def test_windows_lie_whole_and_in_order_on_the_grid(cut):
    tokens, how, grid = cut
    stride = how["stride"] or how["score_length"]
    cut_out = cut_windows(tokens, **how)

    assert grid == grid_size(len(tokens), how["window_length"], stride)
    assert len(cut_out) == (how["windows"] or grid)
    assert cut_out[0].index == 0
    assert all(a.index < b.index for a, b in pairwise(cut_out))
    assert cut_out[-1].index < grid
    for w in cut_out:
        assert w.start == w.index * stride
        assert w.tokens.tolist() == list(range(w.start, w.start + how["window_length"]))


@settings(deadline=None)
@given(cuts())
def test_prefix_and_suffix_make_the_window(cut):
    tokens, how, _ = cut
    for w in cut_windows(tokens, **how):
        assert w.prefix.shape == (1, how["window_length"] - how["score_length"])
        assert w.suffix.shape == (1, how["score_length"])
        assert torch.equal(torch.cat([w.prefix, w.suffix], dim=1)[0], w.tokens)
        assert torch.equal(w.targets, w.suffix[0, 1:])


@settings(deadline=None)
@given(cuts())
def test_no_token_is_scored_twice_at_the_default_stride(cut):
    tokens, how, _ = cut
    scored = torch.cat([w.targets for w in cut_windows(tokens, **how | {"stride": None, "windows": None})])
    assert len(scored.unique()) == len(scored)


@settings(deadline=None)
@given(cuts())
def test_asking_for_the_whole_grid_is_asking_for_all(cut):
    tokens, how, grid = cut
    counted = cut_windows(tokens, **how | {"windows": grid})
    assert [w.index for w in counted] == list(range(grid))
    assert [w.start for w in counted] == [w.start for w in cut_windows(tokens, **how | {"windows": None})]


@settings(deadline=None)
@given(cuts())
def test_windows_are_spread_evenly(cut):
    tokens, how, grid = cut
    ends = [w.index for w in cut_windows(tokens, **how)] + [grid]
    gaps = [b - a for a, b in pairwise(ends)]
    assert max(gaps) - min(gaps) <= 1  # floors of equally spaced numbers: gaps differ by one at most


@settings(deadline=None)
@given(cuts())
def test_bos_replaces_the_first_token_and_nothing_else(cut):
    tokens, how, _ = cut
    before = tokens.clone()
    with_bos, without = cut_windows(tokens, **how, bos_token_id=BOS), cut_windows(tokens, **how)
    for a, b in zip(with_bos, without, strict=True):
        assert a.tokens[0] == BOS
        assert torch.equal(a.tokens[1:], b.tokens[1:])
    assert torch.equal(tokens, before)


def test_bos_token_zero_is_a_token():
    assert cut_windows(text(30) + 5, window_length=8, score_length=4, bos_token_id=0)[1].tokens[0] == 0


def test_wikitext_2_has_586_windows():
    n_tokens = 301_948  # WikiText-2 raw test under SmolLM2's tokenizer
    assert grid_size(n_tokens, 2048, 512) == 586
    assert [w.index for w in cut_windows(text(n_tokens), windows=4)] == [0, 146, 293, 439]
    assert [w.index for w in cut_windows(text(n_tokens), windows=64)][-2:] == [567, 576]


def test_defaults_score_511_tokens_after_a_prefix_of_1536():
    (w,) = cut_windows(text(2048))
    assert w.prefix_length == 1536
    assert w.targets.tolist() == list(range(1537, 2048))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"score_length": 8}, "score_length is 8, window_length 8; .* use a smaller score_length"),
        ({"score_length": 9}, "score_length is 9, window_length 8"),
        ({"score_length": 1}, "score_length is 1; its first token is not scored, so it must be at least 2"),
        ({"stride": 0}, "stride is 0; windows must advance by at least 1 token"),
        ({"windows": 0}, "windows is 0; at least 1 must be evaluated; leave windows out for all 6"),
        ({"windows": 7}, r"windows is 7, the text has 6 \(length 8, stride 4\); use at most 6"),
        ({"window_length": 31}, "the text has 30 tokens, a window needs 31; use a longer text"),
    ],
)
def test_bad_settings_say_what_to_do(how, message):
    with pytest.raises(ValueError, match=message) as error:
        cut_windows(text(30), **{"window_length": 8, "score_length": 4} | how)
    assert "\n" not in str(error.value)


def test_a_batch_of_one_is_not_a_text():
    with pytest.raises(ValueError, match=r"tokens has shape \(1, 30\); .* tokens.flatten\(\)"):
        cut_windows(text(30)[None], window_length=8, score_length=4)


def test_a_window_must_fit_the_positions():
    check_positions(2048, 2048)
    check_positions(2048, None)
    with pytest.raises(ValueError, match=r"window_length is 2048, the model has 1024 positions; .* at most 1024"):
        check_positions(2048, 1024)


@settings(deadline=None)
@given(cuts(), st.integers(0, 60))
def test_an_offset_leaves_out_what_stands_before(cut, offset):
    """So a window that is shorter by as much scores the same tokens."""
    tokens, how, _ = cut
    windows = cut_windows(torch.cat([torch.full((offset,), BOS), tokens]), offset=offset, **how)
    plain = cut_windows(tokens, **how)
    assert [w.start - offset for w in windows] == [w.start for w in plain]
    assert all(torch.equal(a.tokens, b.tokens) for a, b in zip(windows, plain, strict=True))
