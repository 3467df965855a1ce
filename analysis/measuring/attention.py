"""What an error in keys or values does to attention, on real queries, all windows and KV heads of a layer at once.

Sums over queries, so that windows and heads add up; figures are derived from them once, at the end.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from kvdelta.analysis.measuring.reconstruction import Sums
from kvdelta.harness.divergence import kl_terms
from kvdelta.schemes import KV

Logits = Float[Tensor, "batch heads group queries tokens"]
OfQueries = Float[Tensor, "batch heads group queries channels"]

OF_A_HEAD = (2, 3, 4)  # the axes that are summed over: query heads, queries, and tokens or channels


class HeadAttention:
    """KV heads and the query heads that share each: what exact keys and values give, to compare others with.

    queries [windows, KV heads, query heads of each, queries, channels]; keys, values [windows, KV heads, tokens, channels];
    allowed: which tokens a query attends to. Logits are QKᵀ·scaling, soft-capped where the model does so. Computes in the
    inputs' dtype. Several tensors of the size of the logits [windows, query heads, queries, tokens] exist at a time.
    """

    def __init__(
        self,
        queries: OfQueries,
        keys: KV,
        values: Float[Tensor, "batch heads tokens value_channels"],
        allowed: Bool[Tensor, "queries tokens"],
        scaling: float,
        softcap: float | None = None,
    ):
        self.queries, self.values, self.scaling, self.softcap = queries, values, scaling, softcap
        self.forbidden = ~allowed
        self.attended = allowed.sum(dim=-1, keepdim=True).to(queries.dtype)
        self.logits = self._logits(keys)
        self.log_sum = self._log_sum(self.logits)
        self.scores = self._scores(self.logits, self.log_sum)
        self.output = _times(self.scores, values)
        rows = self.queries.shape[2] * self.queries.shape[3]
        self.sums_of_exact: Sums = {
            "rows": self.logits.new_full(self.logits.shape[:2], rows, dtype=torch.float64),
            "logit_norm2": _energy(self._centred(self.logits.clone())),
            "score_norm2": _energy(self.scores),
            "output_norm2": _energy(self.output),
        }

    def sums(self, keys: KV, values: Float[Tensor, "batch heads tokens value_channels"]) -> Sums:
        """Against the exact ones: squared errors of centred logits (each row minus its mean over the attended tokens),
        of attention scores, and of the output with both, only the keys, or only the values replaced; the summed
        KL(scores ‖ scores with these keys) in nats; beside them the exact energies, and the number of rows. Each
        [windows, KV heads]."""
        logits = self._logits(keys)
        log_sum = self._log_sum(logits)
        scores = self._scores(logits, log_sum)
        difference = logits.sub_(self.logits).masked_fill_(self.forbidden, 0)
        sums = {"attention_kl": self._kl(difference, log_sum - self.log_sum, scores)}
        sums["logit_error2"] = _energy(self._centred(difference))
        for name, output in {
            "key": _times(scores, self.values),
            "value": _times(self.scores, values),
            "both": _times(scores, values),
        }.items():
            sums[f"output_error2_{name}"] = _energy(output - self.output)
        sums["score_error2"] = _energy(scores.sub_(self.scores))
        return {**self.sums_of_exact, **sums}

    def _logits(self, keys: Tensor) -> Logits:
        logits = _times(self.queries * self.scaling, keys.transpose(2, 3))
        return logits if self.softcap is None else torch.tanh(logits / self.softcap) * self.softcap

    def _log_sum(self, logits: Tensor) -> Tensor:
        return logits.masked_fill(self.forbidden, -torch.inf).logsumexp(dim=-1, keepdim=True)

    def _scores(self, logits: Tensor, log_sum: Tensor) -> Logits:
        return (logits - log_sum).masked_fill_(self.forbidden, -torch.inf).exp_()

    def _centred(self, logits: Tensor) -> Tensor:
        """In place: minus the mean over the attended tokens, 0 elsewhere."""
        mean = logits.masked_fill_(self.forbidden, 0).sum(dim=-1, keepdim=True) / self.attended
        return logits.sub_(mean).masked_fill_(self.forbidden, 0)

    def _kl(self, difference: Tensor, shift: Tensor, scores: Tensor) -> Tensor:
        terms = kl_terms(difference - shift, self.scores, lambda: scores)
        return terms.sum(dim=OF_A_HEAD, dtype=torch.float64)


def _times(x: Tensor, of_kv_head: Tensor) -> Tensor:
    """[windows, heads, group, queries, n] times [windows, heads, n, m], which is not copied for each of the group."""
    return (x.flatten(2, 3) @ of_kv_head).unflatten(2, x.shape[2:4])


def _energy(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x, dim=OF_A_HEAD).double().square()
