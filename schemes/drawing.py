"""What schemes draw: on the CPU, with a seed that is a field of their spec, so that it is the same everywhere."""

import torch

from kvdelta.schemes.errors import UserError

LARGEST_SEED = 2**63 - 1


def check_seed(seed: int) -> None:
    """UserError for one that no generator takes."""
    if not 0 <= seed <= LARGEST_SEED:
        raise UserError(f"seed={seed}: a seed is not negative, and below 2^63")


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
