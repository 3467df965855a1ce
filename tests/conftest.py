"""The annotations of `schemes`, shapes included, are checked in every test; everything is seeded."""

import random

import beartype.typing
import numpy as np
import pytest
import torch
from hypothesis import settings
from jaxtyping import install_import_hook

# The hook decorates methods one by one, where beartype cannot know what `Self` is: that one hint is not checked.
# The numeric tower: where a float is asked for, a whole number is welcome.
CHECKER = """beartype.beartype(conf=beartype.BeartypeConf(
    is_pep484_tower=True, hint_overrides=beartype.FrozenDict({beartype.typing.Self: object})
))"""
assert beartype.typing
install_import_hook("schemes", CHECKER)  # before anything imports schemes

settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.load_profile("repeatable")


@pytest.fixture(autouse=True)
def seed():
    random.seed(0)
    np.random.seed(0)
    torch.default_generator.manual_seed(0)
    if torch.cuda.is_available():  # without a device torch.manual_seed keeps a traceback of each call for later
        torch.cuda.manual_seed_all(0)
