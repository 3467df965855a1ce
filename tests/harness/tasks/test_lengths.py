"""Is a context long enough: what is refused for another reason keeps its own words."""

import pytest

from kvdelta.harness.caches.contenders import SchemeContender
from kvdelta.harness.tasks.lengths import check_lengths
from kvdelta.harness.tasks.options import TaskOptions
from kvdelta.schemes.errors import UserError


class From(SchemeContender):
    """Of contexts of so many tokens alone; 0: of none."""

    least = 0

    def check(self, model, prefix_length):
        if not self.least or prefix_length < self.least:
            raise UserError("its own words")


def contender(least):
    one = From.of("int4")
    object.__setattr__(one, "least", least)
    return one


@pytest.mark.parametrize("least", [201, 399, 400, 401, 5000])
def test_the_least_length_is_named(refused, least):
    how = TaskOptions(lengths=(300, 200))
    with refused(
        f"contexts have 200 tokens, too few for int4, which needs {least} to change anything; give a longer --length"
    ):
        check_lengths(contender(least), None, how, [])
    check_lengths(contender(least), None, TaskOptions(lengths=(least,)), [])


def test_what_no_length_mends_keeps_its_words(refused):
    with refused("^its own words$"):
        check_lengths(contender(0), None, TaskOptions(lengths=(200,)), [])
