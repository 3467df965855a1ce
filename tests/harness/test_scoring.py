"""Scores against direct computation in float64, in torch and, where Triton is there, in its kernel."""

import importlib.util
import os
import subprocess
import sys

import pytest
import torch

from kvdelta.harness import scoring
from kvdelta.harness.scoring import Reference, Scores, not_finite
from kvdelta.harness.subject.windows import Batch
from kvdelta.schemes import kernels


def pair(batch=2, scored=40, vocabulary=64, noise=0.01):
    generator = torch.Generator().manual_seed(0)
    p = torch.randn(batch, scored, vocabulary, generator=generator)
    q = p + noise * torch.randn(p.shape, generator=generator)
    return p, q, torch.randint(vocabulary, (batch, scored), generator=generator)


def check(found, p, q, targets):
    exact_p, exact_q = p.double().log_softmax(-1), q.double().log_softmax(-1)
    kl = (exact_p.exp() * (exact_p - exact_q)).sum(-1)
    # a loss near 5 carries float32 round-off of 5 · 2^-23, a few times
    assert torch.allclose(found.nll.double(), -exact_q.gather(2, targets[..., None])[..., 0], atol=2e-6)
    # KL is about 5e-5: 1e-4 of it is far above round-off and far under a cancelled log-ratio's error
    assert torch.allclose(found.kl.double(), kl, rtol=1e-3, atol=1e-10)
    assert (found.kl >= 0).all()
    # a sum of positive numbers: their relative round-off
    assert torch.allclose(found.tvd.double(), (exact_p.exp() - exact_q.exp()).abs().sum(-1) / 2, rtol=1e-4, atol=1e-7)
    assert torch.equal(found.top1, q.argmax(-1) == p.argmax(-1))


def test_tvd_is_how_often_coupled_draws_differ():
    """Both draw from what they share while that suffices: a draw from min(p, q), or two from what each has alone."""
    p, q, targets = pair(batch=1, scored=4, vocabulary=50, noise=1.0)
    tvd = Reference(p.clone()).score(q, targets).tvd[0].double()
    exact_p, exact_q = (x[0].double().softmax(-1) for x in (p, q))
    generator, draws = torch.Generator().manual_seed(1), 40_000
    for row in range(4):
        shared = torch.minimum(exact_p[row], exact_q[row])
        first = torch.multinomial(exact_p[row], draws, replacement=True, generator=generator)
        kept = torch.rand(draws, generator=generator, dtype=torch.float64) < (shared / exact_p[row])[first]
        second = torch.multinomial(exact_q[row] - shared, draws, replacement=True, generator=generator)
        second[kept] = first[kept]
        # second is distributed as q, and differs from first as seldom as can be; five standard errors
        assert (second != first).double().mean().item() == pytest.approx(tvd[row].item(), abs=5 * 0.5 / draws**0.5)
        drawn = torch.bincount(second, minlength=50) / draws
        assert torch.allclose(drawn.double(), exact_q[row], atol=5 * 0.5 / draws**0.5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("at_once", [2**18, 100])
def test_scores_against_float64(monkeypatch, dtype, at_once):
    """In the model's dtype what is compared are the logits as rounded; in slices of rows, a ragged one among them."""
    monkeypatch.setitem(scoring.AT_ONCE, "cpu", at_once)
    p, q, targets = (x.to(dtype) if x.is_floating_point() else x for x in pair(scored=37, noise=0.05))
    check(Reference(p.clone()).score(q, targets), p, q, targets)


def test_logits_may_be_views_and_are_left_as_they_are():
    p, q, targets = pair(scored=41)
    kept = q.clone()
    found = Reference(p.clone()[:, :-1]).score(q[:, :-1], targets[:, :-1])
    assert torch.equal(q, kept)
    check(found, p[:, :-1], q[:, :-1], targets[:, :-1])


def test_the_first_tokens_of_some_windows():
    """As the noise floor asks for them."""
    p, q, targets = pair(batch=3)
    some = Reference(p.clone()).of_windows(slice(1, 3)).score(q[1:, :7], targets[1:])
    check(some, p[1:, :7], q[1:, :7], targets[1:, :7])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_exact_against_itself(dtype):
    p, _, targets = pair()
    p = p.to(dtype)
    found = Reference(p.clone()).itself(targets)
    assert (found.kl == 0).all()
    assert found.top1.all()
    expected = -p.double().log_softmax(-1).gather(2, targets[..., None])[..., 0]
    assert torch.allclose(found.nll.double(), expected, atol=2e-6)


@pytest.mark.parametrize("gap", [30.0, 60.0, 84.0, 100.0, 120.0, 60000.0])
def test_kl_of_distributions_that_share_nothing(gap):
    """Each sure of another token: gap nats, to float32; exp(gap) overflows from 88 on, and p is 0 from 104 on."""
    p, q = torch.tensor([[[gap, 0.0, 0.0]]]), torch.tensor([[[0.0, gap, 0.0]]])
    exact_p, exact_q = p.double().log_softmax(-1), q.double().log_softmax(-1)
    expected = (exact_p.exp() * (exact_p - exact_q)).sum().item()
    kl = Reference(p).score(q, torch.zeros(1, 1, dtype=torch.long)).kl.item()
    assert kl == pytest.approx(expected, rel=1e-6)
    assert kl == pytest.approx(gap, rel=1e-6)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("exact", [True, False])
def test_one_bad_logit_is_found(bad, exact):
    p, q, targets = pair(batch=3)
    (p if exact else q)[1, 5, 9] = bad
    targets[1, 5] = 0
    scores = Reference(p).itself(targets) if exact else Reference(p).score(q, targets)
    assert scores.finite().tolist() == [True, False, True]


def test_the_first_window_that_is_not_finite_is_named(subject):
    scores = Scores.joined([Scores(*(torch.zeros(1, 3) for _ in range(3)), torch.ones(1, 3).bool()), Scores.none(2, 3)])
    error = not_finite(scores, Batch(tuple(subject.windows[:3])), "float32")
    assert error.first == 1
    assert f"window {subject.windows[1].index} " in str(error)


def check_large(vocabulary, noise, device="cpu", tokens=24):
    """KL from .02 to 1 nats over a large vocabulary, where a sum of one number after another is off by 1e-5 of itself."""
    generator = torch.Generator().manual_seed(1)
    p = 3 * torch.randn(1, tokens, vocabulary, generator=generator)
    q = p + noise * torch.randn(p.shape, generator=generator)
    targets = torch.randint(vocabulary, (1, tokens), generator=generator)
    exact_p, exact_q = p.double().log_softmax(-1), q.double().log_softmax(-1)
    kl = (exact_p.exp() * (exact_p - exact_q)).sum(-1)
    assert 0.01 < kl.mean() < 1.2
    reference = Reference(p.to(device))
    found, itself = reference.score(q.to(device), targets), reference.itself(targets)
    off = found.kl.double() - kl
    assert off.mean().abs() < 1e-7, off
    assert (off.abs() < 1e-7 + 1e-6 * kl).all(), off
    tvd = (exact_p.exp() - exact_q.exp()).abs().sum(-1) / 2
    assert torch.allclose(found.tvd.double(), tvd, rtol=0, atol=1e-6), found.tvd - tvd
    for scores, exact in (found, exact_q), (itself, exact_p):
        expected = -exact.gather(2, targets[..., None])[..., 0]
        # float32's rounding of losses of 8 to 32, and of their logits
        assert torch.allclose(scores.nll.double(), expected, rtol=0, atol=3e-6), scores.nll - expected
    assert (itself.kl == 0).all()


LARGE = [(49152, 0.2), (49152, 0.6), (49152, 1.4), (262144, 0.2), (262144, 1.4)]


@pytest.mark.parametrize(("vocabulary", "noise"), LARGE)
def test_large_vocabularies_against_float64(vocabulary, noise):
    check_large(vocabulary, noise)


def test_losses_over_a_large_vocabulary():
    x = 3 * torch.randn(8, 262144, generator=torch.Generator().manual_seed(2))
    targets = torch.arange(8)
    expected = -x.double().log_softmax(-1).gather(1, targets[:, None])[:, 0]
    assert torch.allclose(scoring.losses(x, targets).double(), expected, rtol=0, atol=3e-6)


LARGE_WINDOW = """
import resource
import torch
from kvdelta.harness.scoring import Reference
def most():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
x = torch.randn(1, 512, 262144)
y = torch.randn(x.shape).mul_(0.1).add_(x)
targets = torch.zeros(1, 512, dtype=torch.long)
Reference(x[:, :2].clone()).score(y[:, :2], targets[:, :2])
before = most()
scores = Reference(x).score(y, targets)
assert scores.finite().all()
print((most() - before) / x.nbytes)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="its module resource is of Unix")
def test_a_window_of_512_tokens_over_262144_words():
    """Beside the logits of exact and of the scheme, the probabilities are the only thing of their size."""
    done = subprocess.run([sys.executable, "-c", "import sys" + LARGE_WINDOW], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 1.1


INTERPRETED = """
import torch
from tests.harness.test_scoring import check, check_large, pair
from kvdelta.harness import scoring_kernel
from kvdelta.harness.scoring import Reference
for vocabulary, noise in ((49152, 0.2), (49152, 1.4), (262144, 0.6)):
    check_large(vocabulary, noise, tokens=6)
scoring_kernel.BLOCK = 16
for vocabulary in (64, 50):
    for dtype in (torch.float32, torch.float16):
        p, q, targets = (x.to(dtype) if x.is_floating_point() else x for x in pair(2, 5, vocabulary, noise=0.05))
        found = Reference(p[:, :-1]).score(q[:, :-1], targets[:, :-1])
        check(found, p[:, :-1], q[:, :-1], targets[:, :-1])
        assert (Reference(p).itself(targets).kl == 0).all()
far = Reference(torch.tensor([[[100.0, 0, 0]]])).score(torch.tensor([[[0, 100.0, 0]]]), torch.zeros(1, 1).long())
assert abs(far.kl.item() - 100) < 1e-4, far.kl
assert far.tvd.item() == 1, far.tvd
bad = torch.zeros(1, 3, 50)
bad[0, 1, 7] = float("nan")
assert Reference(torch.randn(1, 3, 50)).score(bad, torch.zeros(1, 3).long()).nll.isfinite().tolist() == [[True, False, True]]
"""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
def test_the_kernel_in_tritons_interpreter():
    done = subprocess.run(
        [sys.executable, "-c", INTERPRETED],
        env={**os.environ, "TRITON_INTERPRET": "1", "KVDELTA_KERNELS": "always"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_few_windows_are_not_worth_compiling(monkeypatch):
    monkeypatch.setattr(kernels, "_triton_is_there", lambda: True)
    cuda = torch.device("cuda")
    with kernels.for_windows(kernels.FEW - 1, print):
        assert not kernels.available(cuda, 2**30)
    with kernels.for_windows(kernels.FEW, print):
        assert kernels.available(cuda, 2**30)
        assert not kernels.available(torch.device("cpu"), 2**30)
    assert kernels.available(cuda, 2**30)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_kernel_on_a_gpu():
    p, q, targets = (x.cuda() for x in pair(3, 100, 49152, noise=0.05))
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        x, y = p.to(dtype), q.to(dtype)
        assert kernels.available(y.device, y.numel())
        check(Reference(x.clone()).score(y, targets), x.cpu(), y.cpu(), targets.cpu())
    for vocabulary, noise in LARGE:
        check_large(vocabulary, noise, "cuda")
