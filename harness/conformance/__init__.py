"""What a transformers cache owes, as checks that any cache can be put to::

    import pytest
    from kvdelta.harness.conformance import checks

    @pytest.mark.parametrize("check", checks, ids=str)
    def test_my_cache(check):
        assert check(lambda config: MyCache(config)).passed

The factory is called with the config of a tiny random model, and gives a fresh cache each time; a cache of fixed length has to
hold 384 tokens. An Outcome says how a check ended and why.
"""

from kvdelta.harness.conformance.decoding import INFERENCE_MODE, STEPWISE
from kvdelta.harness.conformance.inputs import HYBRID, LEFT_PADDING, POSITIONS, UNEVEN_LENGTHS
from kvdelta.harness.conformance.moving import BATCH, DEEPCOPY, OFFLOAD, REORDER
from kvdelta.harness.conformance.outcome import Check, Factory, Outcome
from kvdelta.harness.conformance.storing import CROP, MEMORY, RESET, SAYS

checks: tuple[Check, ...] = (
    *SAYS, POSITIONS, CROP, RESET, REORDER, BATCH, DEEPCOPY, LEFT_PADDING, *STEPWISE, *HYBRID, OFFLOAD, UNEVEN_LENGTHS, INFERENCE_MODE,
    MEMORY,
)  # fmt: skip

__all__ = ["Check", "Factory", "Outcome", "checks"]
