"""Attention errors against a direct float64 computation, and on the planted structure whose figures are known."""

import pytest
import scipy.linalg
import torch

from kvdelta.analysis.measuring.attention import HeadAttention
from kvdelta.analysis.measuring.reconstruction import reconstruction_sums
from kvdelta.analysis.reading.error_measures import relative_error
from kvdelta.schemes import TokenStore, parse_scheme

from ...schemes.test_constants import planted


def ratio(sums, error, norm):
    return (sums[error] / sums[norm]) ** 0.5


def sums_of(q, k, v, k2, v2, allowed, scaling, softcap=None):
    """Of one window and KV head."""
    attention = HeadAttention(q[None, None], k[None, None], v[None, None], allowed, scaling, softcap)
    return {name: float(values) for name, values in attention.sums(k2[None, None], v2[None, None]).items()}


def direct(q, k, v, k2, v2, allowed, scaling, softcap):
    """The definitions, row by row, in float64."""

    def logits(keys):
        raw = q.double() @ keys.double().T * scaling
        return raw if softcap is None else softcap * torch.tanh(raw / softcap)

    found = {"logit": [0.0, 0.0], "score": [0.0, 0.0], "kl": 0.0, "both": 0.0, "key": 0.0, "value": 0.0, "out": 0.0}
    first, second = logits(k), logits(k2)
    for g in range(q.shape[0]):
        for i in range(q.shape[1]):
            at = allowed[i]
            a, b = first[g, i, at], second[g, i, at]
            p, p2 = a.softmax(0), b.softmax(0)
            found["logit"][0] += ((b - b.mean()) - (a - a.mean())).square().sum()
            found["logit"][1] += (a - a.mean()).square().sum()
            found["score"][0] += (p2 - p).square().sum()
            found["score"][1] += p.square().sum()
            found["kl"] += (p * (p.log() - p2.log())).sum()
            out = p @ v.double()[at]
            found["out"] += out.square().sum()
            for name, scores, values in (("both", p2, v2), ("key", p2, v), ("value", p, v2)):
                found[name] += (scores @ values.double()[at] - out).square().sum()
    return found


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("noise", [1e-3, 0.5])
def test_against_a_direct_computation(softcap, noise):
    q, k, v = torch.randn(3, 7, 8), 2 * torch.randn(20, 8), torch.randn(20, 6)
    k2, v2 = k + noise * torch.randn_like(k), v + noise * torch.randn_like(v)
    allowed = torch.ones(7, 20, dtype=torch.bool).tril(13)
    allowed[:, 3] = False  # a padded token
    sums = sums_of(q, k, v, k2, v2, allowed, 0.3, softcap)
    expected = direct(q, k, v, k2, v2, allowed, 0.3, softcap)
    close = {"rel": 1e-3, "abs": 1e-9}  # float32 sums of a few hundred terms; differences of 1e-3 keep 4 digits
    assert sums["logit_error2"] == pytest.approx(float(expected["logit"][0]), **close)
    assert sums["logit_norm2"] == pytest.approx(float(expected["logit"][1]), **close)
    assert sums["score_error2"] == pytest.approx(float(expected["score"][0]), **close)
    assert sums["score_norm2"] == pytest.approx(float(expected["score"][1]), **close)
    assert sums["attention_kl"] == pytest.approx(float(expected["kl"]), **close)
    assert sums["rows"] == 21
    for name in ("both", "key", "value"):
        assert sums[f"output_error2_{name}"] == pytest.approx(float(expected[name]), **close)
    assert sums["output_norm2"] == pytest.approx(float(expected["out"]), **close)


def test_windows_and_heads_are_apart():
    """Sums over [windows, KV heads] at once are those of each alone."""
    q, k, v = torch.randn(3, 2, 2, 5, 8), torch.randn(3, 2, 9, 8), torch.randn(3, 2, 9, 6)
    k2, v2 = k + 0.1 * torch.randn_like(k), v + 0.1 * torch.randn_like(v)
    allowed = torch.ones(5, 9, dtype=torch.bool).tril(4)
    together = HeadAttention(q, k, v, allowed, 0.3).sums(k2, v2)
    for i in range(3):
        for h in range(2):
            alone = sums_of(q[i, h], k[i, h], v[i, h], k2[i, h], v2[i, h], allowed, 0.3)
            assert alone == pytest.approx({name: float(sums[i, h]) for name, sums in together.items()}, rel=1e-5)


def test_the_same_keys_and_values_give_zero():
    q, k, v = torch.randn(2, 5, 8), torch.randn(9, 8), torch.randn(9, 8)
    sums = sums_of(q, k, v, k.clone(), v.clone(), torch.ones(5, 9, dtype=torch.bool), 0.35)
    assert [sums[name] for name in sums if "error2" in name or name == "attention_kl"] == [0.0] * 6


@pytest.mark.parametrize(("exact", "replaced"), [(-300.0, 5.0), (-83.0, 0.0)])  # past float32's exp; just under it
def test_a_score_that_comes_from_nothing(exact, replaced):
    """log p̂ − log p beyond what float32 can exponentiate: the KL must not be NaN, and is what the definition says."""
    q = torch.tensor([[[1.0]]])
    k, k2 = torch.tensor([[0.0], [exact]]), torch.tensor([[0.0], [replaced]])
    sums = sums_of(q, k, torch.eye(2), k2, torch.eye(2), torch.ones(1, 2, dtype=torch.bool), 1.0)
    assert sums["attention_kl"] == pytest.approx(torch.tensor(replaced).exp().log1p().item(), rel=1e-5)


# Planted structure: 2 bits, groups of 32. Expected figures from the definitions on large samples, 3 % tolerance.


def stored(spec, side, x):
    store = TokenStore(parse_scheme(spec).sides[side])
    store.append(x)
    return store.read()


def outliers_and_token_scales(tiles, tokens):
    """N(0,1); the first 4 channels ×3 then shifted; each token × exp(0.7·N(0,1))."""
    x = torch.randn(tiles, 1, tokens, 128)
    x[..., :4] *= 3
    x[..., :4] += torch.tensor([20.0, -15.0, 12.0, -10.0])
    return x * torch.exp(0.7 * torch.randn(tiles, 1, tokens, 1))


PLANTED = {
    # data: (per token G128, per token G32, per channel G32, per channel G128)
    "gauss": (0.501, 0.393, 0.393, 0.501),
    "ch": (1.284, 0.637, 0.155, 0.198),
    "tok": (0.501, 0.393, 0.522, 0.827),
    "ch+tok": (1.301, 0.645, 0.313, 0.469),
}
LAYOUTS = [("token", 128), ("token", 32), ("channel", 32), ("channel", 128)]


@pytest.mark.parametrize("data", PLANTED)
def test_planted_structure(data):
    x = planted(data)
    for (axis, group), expected in zip(LAYOUTS, PLANTED[data], strict=True):
        back = stored(f"asym2:axis={axis},group_size={group}", "key", x)
        sums = reconstruction_sums(x, back)
        found = relative_error(sums["error2"].sum().numpy(), sums["norm2"].sum().numpy())
        assert float(found) == pytest.approx(expected, rel=0.03), (axis, group)


def test_equal_value_error_unequal_output_error():
    """A sink: attention looks at a token with small values; a group along tokens gives it its neighbours' scale."""
    v = torch.randn(64, 1, 128, 128)
    v[:, :, 0] *= 0.05
    scores = torch.full((128,), 0.2 / 127)
    scores[0] = 0.8
    found = {}
    for axis in ("token", "channel"):
        back = stored(f"asym2:axis={axis},group_size=32", "value", v)
        sums = reconstruction_sums(v, back)
        error = float(relative_error(sums["error2"].sum().numpy(), sums["norm2"].sum().numpy()))
        logits = scores.log()[:, None].expand(64, 1, 128, 1)
        everything = torch.ones(1, 128, dtype=torch.bool)
        heads = HeadAttention(torch.ones(64, 1, 1, 1, 1), logits, v, everything, 1.0).sums(logits, back)
        found[axis] = error, float((heads["output_error2_value"].sum() / heads["output_norm2"].sum()) ** 0.5)
    assert found["token"] == (pytest.approx(0.393, rel=0.03), pytest.approx(0.395, rel=0.03))
    assert found["channel"] == (
        pytest.approx(0.395, rel=0.03),
        pytest.approx(8.4, abs=0.1 + 2 * 0.07),
    )  # its own ±.1, and 64 heads vary by .07


def test_key_error_alone_ranks_wrongly():
    """Per channel, and Hadamard + per token, have equal key errors; the attention of one is 14 times further off."""
    keys = outliers_and_token_scales(16, 512)
    queries = torch.randn(16, 1, 256, 128)
    queries[..., :4] *= 0.3
    hadamard = torch.from_numpy(scipy.linalg.hadamard(128)).float() / 128**0.5
    decoded = {
        "per channel G32": stored("asym2:axis=channel,group_size=32", "key", keys),
        "Hadamard + per token G128": stored("asym2:axis=token,group_size=128", "key", keys @ hadamard) @ hadamard.T,
        "per token G32": stored("asym2:axis=token,group_size=32", "key", keys),
    }
    expected = {
        "per channel G32": (0.311, 0.496, 0.20),
        "Hadamard + per token G128": (0.310, 0.776, 2.8),
        "per token G32": (0.637, 1.47, 9.0),
    }
    for name, back in decoded.items():
        sums = reconstruction_sums(keys, back)
        error = float(relative_error(sums["error2"].sum().numpy(), sums["norm2"].sum().numpy()))
        everything = torch.ones(256, 512, dtype=torch.bool)
        heads = HeadAttention(queries[:, :, None], keys, keys, everything, 128**-0.5).sums(back, keys)
        total = {key: float(sums.sum()) for key, sums in heads.items()}
        found = error, ratio(total, "logit_error2", "logit_norm2"), total["attention_kl"] / total["rows"]
        # 16 tiles of heavy-tailed tokens: the KL of a tile varies by a tenth
        assert found[:2] == (pytest.approx(expected[name][0], rel=0.03), pytest.approx(expected[name][1], rel=0.03)), (
            name
        )
        assert found[2] == pytest.approx(expected[name][2], rel=0.1), name
