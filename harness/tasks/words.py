"""Words, codes and numbers that samples are made of: lists of the project's own, drawn with a seed."""

import random
import re

ADJECTIVES = re.findall(
    r"\w+",
    """
    amber ancient bitter brave bright broken calm clever crimson curious dusty eager early empty faded fancy frozen
    gentle giant golden green happy heavy hidden hollow humble icy jolly keen lazy little lonely loud lucky mellow
    misty modest narrow noble northern odd orange pale patient plain polite proud purple quick quiet rapid rare
    restless round rusty salty scarlet secret shiny silent silver simple sleepy slow small smooth southern steady
    stormy striped sweet swift tall tender tiny tired violet warm wild wise wooden yellow young
    """,
)

NOUNS = re.findall(
    r"\w+",
    """
    acorn anchor apple arrow badger barrel basket beacon beaver bell blanket boat bottle bridge bucket button candle
    canyon carpet castle cherry clock cloud copper coral cottage crane cricket crown desert dragon drum eagle engine
    falcon feather fence field flute forest fountain fox garden ginger glacier hammer harbor hazel helmet heron hill
    honey horse island ivory jacket kettle kitten ladder lantern lemon lily lion lizard magnet maple marble meadow
    mirror mountain needle oak ocean olive orchard otter owl paddle palace parrot pebble pepper piano pigeon pillow
    pine planet pocket pony puzzle rabbit raven ribbon river robin rocket saddle sailor salmon scarf shadow shell
    shovel sparrow spoon squirrel statue stone sunset swan table temple thunder tiger tower train tunnel turtle valley
    velvet village violin wagon walnut whale willow window wolf
    """,
)

CONSONANTS, VOWELS = "bdfgklmnprstvz", "aeiou"


def names(rng: random.Random, count: int) -> list[str]:
    """Two words each, all different."""
    every = len(ADJECTIVES) * len(NOUNS)
    if count > every:  # of contexts of a hundred thousand tokens
        return [
            f"{ADJECTIVES[i % len(ADJECTIVES)]} {NOUNS[i % len(NOUNS)]} {i}" for i in rng.sample(range(count), count)
        ]
    picked = rng.sample(range(every), count)
    return [f"{ADJECTIVES[i // len(NOUNS)]} {NOUNS[i % len(NOUNS)]}" for i in picked]


def numbers(rng: random.Random, count: int, digits: int) -> list[str]:
    """Of so many digits, the first no zero; all different."""
    first, found = 10 ** (digits - 1), dict[int, None]()
    while len(found) < min(count, 9 * first):
        found[rng.randrange(first, 10 * first)] = None
    wanted = list(map(str, found))
    return (wanted * (count // len(wanted) + 1))[:count]  # of few digits there are not enough: some stand twice


def codes(rng: random.Random, count: int, syllables: int = 3) -> list[str]:
    """Words that no language has, such as "vokibu"; all different."""
    found = dict[str, None]()
    while len(found) < count:
        found["".join(rng.choice(CONSONANTS) + rng.choice(VOWELS) for _ in range(syllables))] = None
    return list(found)


def hexadecimal(rng: random.Random, count: int, characters: int) -> list[str]:
    """All different, as far as there are so many."""
    found = dict[str, None]()
    while len(found) < min(count, 16**characters):
        found[f"{rng.getrandbits(4 * characters):0{characters}x}"] = None
    wanted = list(found)
    return (wanted * (count // len(wanted) + 1))[:count]
