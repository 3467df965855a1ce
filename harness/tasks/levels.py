"""The tasks, and for each a ladder of levels, from easy to hard. Light: no torch."""

Level = dict[str, int]

ALL = 0  # so many as the context holds

LADDERS: dict[str, tuple[Level, ...]] = {
    "niah-single": ({"digits": 3}, {"digits": 5}, {"digits": 7}, {"digits": 16}),
    "niah-multikey": (
        {"keys": 4, "digits": 4},
        {"keys": 16, "digits": 4},
        {"keys": ALL, "digits": 4},
        {"keys": ALL, "digits": 8},
    ),
    "niah-multivalue": (
        {"values": 2, "digits": 4},
        {"values": 3, "digits": 5},
        {"values": 4, "digits": 7},
        {"values": 8, "digits": 7},
    ),
    "vt": (
        {"hops": 1, "chains": 1},
        {"hops": 2, "chains": 1},
        {"hops": 4, "chains": 1},
        {"hops": 4, "chains": 3},
    ),
    "cwe": ({"top": 1, "one_in": 3}, {"top": 1, "one_in": 6}, {"top": 2, "one_in": 6}, {"top": 3, "one_in": 10}),
    "fwe": ({"top": 1, "steepness": 30}, {"top": 2, "steepness": 25}, {"top": 3, "steepness": 20}),
    "kv": (
        {"pairs": 4, "characters": 4},
        {"pairs": ALL, "characters": 4},
        {"pairs": ALL, "characters": 8},
        {"pairs": ALL, "characters": 32},
    ),
}


def named(level: Level) -> str:
    """As "keys 16, digits 4"; how many a context is full of is "all"."""
    return ", ".join(f"{name.replace('_', ' ')} {value or 'all'}" for name, value in level.items())
