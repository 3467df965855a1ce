"""What an error in keys or values does to attention, on real queries, one KV head at a time.

Sums over queries, so that windows and heads add up; figures are derived from them once, at the end.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from harness.divergence import kl_terms


class HeadAttention:
    """One KV head and the query heads that share it: what exact keys and values give, to compare others with.

    queries [query heads of the group, queries, channels]; keys, values [tokens, channels]; allowed: which tokens a
    query attends to. Logits are QKᵀ·scaling, soft-capped where the model does so. Computes in the inputs' dtype.
    """

    def __init__(
        self,
        queries: Float[Tensor, "group queries channels"],
        keys: Float[Tensor, "tokens channels"],
        values: Float[Tensor, "tokens value_channels"],
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
        self.output = self.scores @ values
        self.sums_of_exact = {
            "rows": float(self.scores.shape[0] * self.scores.shape[1]),
            "logit_norm2": _energy(self._centred(self.logits.clone())),
            "score_norm2": _energy(self.scores),
            "output_norm2": _energy(self.output),
        }

    def sums(
        self, keys: Float[Tensor, "tokens channels"], values: Float[Tensor, "tokens value_channels"]
    ) -> dict[str, float]:
        """Against the exact ones: squared errors of centred logits (each row minus its mean over the attended tokens),
        of attention scores, and of the output with both, only the keys, or only the values replaced; the summed
        KL(scores ‖ scores with these keys) in nats; beside them the exact energies, and the number of rows."""
        logits = self._logits(keys)
        log_sum = self._log_sum(logits)
        scores = self._scores(logits, log_sum)
        difference = logits.sub_(self.logits).masked_fill_(self.forbidden, 0)
        sums = {"attention_kl": self._kl(difference, log_sum - self.log_sum, scores)}
        sums["logit_error2"] = _energy(self._centred(difference))
        for name, output in {
            "key": scores @ self.values,
            "value": self.scores @ values,
            "both": scores @ values,
        }.items():
            sums[f"output_error2_{name}"] = _energy(output - self.output)
        sums["score_error2"] = _energy(scores.sub_(self.scores))
        return {**self.sums_of_exact, **sums}

    def _logits(self, keys: Tensor) -> Tensor:
        logits = (self.queries * self.scaling) @ keys.T
        return logits if self.softcap is None else torch.tanh(logits / self.softcap) * self.softcap

    def _log_sum(self, logits: Tensor) -> Tensor:
        return logits.masked_fill(self.forbidden, -torch.inf).logsumexp(dim=-1, keepdim=True)

    def _scores(self, logits: Tensor, log_sum: Tensor) -> Tensor:
        return (logits - log_sum).masked_fill_(self.forbidden, -torch.inf).exp_()

    def _centred(self, logits: Tensor) -> Tensor:
        """In place: minus the mean over the attended tokens, 0 elsewhere."""
        mean = logits.masked_fill_(self.forbidden, 0).sum(dim=-1, keepdim=True) / self.attended
        return logits.sub_(mean).masked_fill_(self.forbidden, 0)

    def _kl(self, difference: Tensor, shift: Tensor, scores: Tensor) -> float:
        terms = kl_terms(difference - shift, self.scores, lambda: scores)
        return float(terms.sum(dtype=torch.float64))


def _energy(x: Tensor) -> float:
    return float(torch.linalg.vector_norm(x, dtype=x.dtype).double().square())
