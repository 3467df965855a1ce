"""The shape annotations are really checked here: a wrongly shaped tensor does not get far."""

import pytest
import torch
from jaxtyping import TypeCheckError

from kvdelta.schemes import TokenStore, parse_scheme
from kvdelta.schemes.grouping import Grouping
from kvdelta.schemes.packing import pack

INT4 = parse_scheme("int4").key


@pytest.mark.parametrize(
    "call",
    [
        lambda: INT4.quantizer.quantize(torch.zeros(2, 8, 64)),  # no heads
        lambda: INT4.quantizer.quantize(torch.zeros(1, 2, 8, 64, dtype=torch.int32)),
        lambda: INT4.quantizer.quantize(torch.zeros(1, 2, 8, 64)).with_parts({"codes": torch.zeros(4)}, 8),
        lambda: TokenStore(INT4).append(torch.zeros(2, 8, 64)),
        lambda: TokenStore(INT4).index_select(torch.zeros(2, 2, dtype=torch.long)),
        lambda: Grouping("token", 64).split(torch.zeros(8, 64)),
        lambda: pack(torch.zeros(8, dtype=torch.int32), 4),
    ],
)
def test_a_wrong_shape_or_dtype_is_noticed(call):
    with pytest.raises(TypeCheckError):
        call()
