"""A cache of one's own, judged: does it do what transformers asks, is it read, and what does it cost?

pip install 'kvdelta[demo]' && python own_cache.py
"""

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from kvdelta.harness import Options, compare
from kvdelta.harness.caches.foreign import user_cache
from kvdelta.harness.conformance import checks


class RoundedLayer(DynamicLayer):
    """Keeps keys and values in 8-bit floats; a forward attends to its own tokens as they are."""

    def update(self, key_states, value_states, *args, **kwargs):
        past = self.keys, self.values
        stored = [x.to(torch.float8_e4m3fn).to(x.dtype) for x in (key_states, value_states)]
        super().update(*stored, *args, **kwargs)
        if past[0] is None or not past[0].numel():
            return key_states, value_states
        return torch.cat([past[0], key_states], dim=-2), torch.cat([past[1], value_states], dim=-2)


def rounded(config):
    cache = DynamicCache(config=config)
    cache.layers = [RoundedLayer() for _ in range(config.num_hidden_layers)]
    return cache


if __name__ == "__main__":
    outcomes = {str(check): check(rounded) for check in checks}
    print("not passed:", [name for name, outcome in outcomes.items() if not outcome.passed] or "none")
    run, folder = compare(
        ["fp8", user_cache("own_cache:rounded")], Options(windows=2, window_length=512, score_length=64)
    )
    print(run.audit.failures or "the audit passed")
    for at, contender in enumerate(run.contenders):
        kl = sum(window.kl[at] for window in run.windows) / sum(window.count for window in run.windows)
        print(f"{contender.label}: KL {kl:.5f} nats a token")
