"""`make fuzz`: inputs that a coverage-guided fuzzer (atheris) finds, through everything that reads what people give.

Law: an input is taken, or refused with a UserError of one line, within 2 s and 200 MB. A scheme that is taken has a canonical name
that gives it again. Without a target's name all are run, one after another, in folders outside the checkout; what breaks the law
stays there, and the exit code is 1.

    python tests/fuzz/fuzz.py --seconds 60 [specs|maps|records|journals|configs]
"""

import argparse
import copy
import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import atheris

READERS = ["kvdelta.schemes", "kvdelta.harness.records", "kvdelta.harness.caches.specs", "kvdelta.analysis.cli.config"]

with atheris.instrument_imports(include=READERS):
    from kvdelta.analysis.cli.config import flags_from
    from kvdelta.harness.caches.specs import parse_cache_spec
    from kvdelta.harness.records.run import Entry, Run
    from kvdelta.harness.records.run_folder import entries_of, journal_of, load_run
    from kvdelta.schemes import SCHEMES, parse_scheme
    from kvdelta.schemes.errors import UserError
    from kvdelta.schemes.fields import RULES, alternatives, shown
    from kvdelta.schemes.maps import TEXT_FIELDS
    from kvdelta.schemes.registry import SHORT_NAMES, fields_of, lookup, own_fields, shorthands

RECORD = Path(__file__).parents[2] / "results" / "demo"
SECONDS, MEGABYTES, LONGEST = 2.0, 200, 4096
FLAGS = {"model": True, "scheme": True, "windows": False, "seed": False, "out": False, "wait": False}
"""Of a command, and whether each may be given several times."""
LAYERS, CHANNELS = 4, 64  # of the model that a scheme is made ready for


class Broken(AssertionError):
    """What is to be told of an input that breaks the law."""


def lawful(read: Callable[[], None]) -> None:
    memory, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    try:
        read()
    except UserError as error:
        if "\n" in str(error):
            raise Broken(f"a message of more than one line: {error}") from error
    seconds = time.process_time() - started
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) / 1024
    if seconds > SECONDS or grown > MEGABYTES:
        raise Broken(f"{seconds:.1f} s and {grown:.0f} MB for one input")


def take(spec: str) -> None:
    """A spec as `compare --scheme` takes it, up to where a model is needed."""
    if parse_cache_spec(spec) is not None:
        return
    scheme = parse_scheme(spec)
    if (again := parse_scheme(scheme.name)) != scheme:
        raise Broken(f"{scheme.name} is {again.name}")
    for side in scheme.sides.values():
        side.packed_tokens(4096)
    scheme.check(CHANNELS)
    if not any(
        quantizer.needs_place for one in scheme.variants for side in one.sides.values() for quantizer in side.quantizers
    ):
        scheme.bind(LAYERS, range(LAYERS))


def specs(data: bytes) -> None:
    text = (
        _made_spec(Choices(data)) if data[:1] > HALF else data.decode(errors="surrogateescape")
    )  # as a command line's
    lawful(lambda: take(text))


def maps(data: bytes) -> None:
    Path("map.json").write_bytes(_made_map(Choices(data)) if data[:1] > HALF else data)
    lawful(lambda: take("@map.json"))


def records(data: bytes) -> None:
    Path("run.json").write_bytes(_changed(Path("whole.json").read_bytes(), Choices(data)) if data[:1] > HALF else data)
    lawful(lambda: _loaded(Path()))


def journals(data: bytes) -> None:
    """Lines as they are, each with its checksum before it, or those of a real journal, changed, with checksums."""
    if data[:1] > HALF:
        choices = Choices(data)
        lines = [_changed(line, choices) for line in Path("whole.journal").read_bytes().splitlines()]
    else:
        lines = data[1:].split(b"\n")
    sealed = b"".join(b"%08x %b\n" % (zlib.crc32(line), line) for line in lines)
    journal_of(Path()).write_bytes(data[1:] if data[:1] < b"\x20" else sealed)
    lawful(lambda: _loaded(Path()))


def configs(data: bytes) -> None:
    """A file that is given to --config, up to what the flags make of its values."""
    Path("flags.yaml").write_bytes(data)
    lawful(lambda: _plain(flags_from(Path("flags.yaml"), FLAGS)))


def _plain(values: dict[str, Any]) -> None:
    """What the flags are given are words and numbers, or lists of them."""
    for value in values.values():
        for one in value if isinstance(value, list) else [value]:
            if not isinstance(one, str | int | float) or "\0" in str(one):
                raise Broken(f"a flag is given {one!r}")


HALF = b"\x7f"  # an input that begins with a larger byte is not read as it is, but says what is made
NUMBERS = [
    "0",
    "1",
    "-1",
    "2",
    "3",
    "4",
    "8",
    "16",
    "32",
    "64",
    "128",
    "1000000",
    "9" * 30,
    "0.5",
    "1e999",
    "nan",
    "1_0",
    "true",
]
SPANS = ["0", "1", "3", "0-1", "2-3", "3-2", "9999", "0-9999", "00", "-1", "10000", "1-", "٣", ""]
VALUES = [
    None,
    True,
    0,
    -1,
    1,
    2**70,
    1e308,
    math.nan,
    -math.inf,
    "",
    "x",
    "\n",
    "\ud800",
    [],
    {},
    [[]],
    {"a": 1},
    [None],
    [-1] * 3,
]


class Choices:
    """What an input makes of the choices that it is asked for; 0 behind its end."""

    def __init__(self, data: bytes):
        self.left = atheris.FuzzedDataProvider(data[1:])

    def number(self, most: int) -> int:
        return self.left.ConsumeIntInRange(0, most)

    def one(self, of: Sequence[Any]) -> Any:
        return of[self.number(len(of) - 1)]


def _made_spec(choose: Choices, depth: int = 0) -> str:
    name = choose.one([*SCHEMES, *SHORT_NAMES])
    family, _ = lookup(name)
    if family.wraps and depth < 4:
        inner = choose.one(["@inner.json", None, None, None])
        name += f"({_made_spec(choose, depth + 1) if inner is None else inner})"
    fields, items = fields_of(family) | dict.fromkeys(shorthands(family)), []
    for _ in range(choose.number(3)):
        field = choose.one([*fields])
        choices = alternatives(fields[field].type)[0] if fields[field] else []
        items.append(f"{field}={choose.one([*map(shown, choices), *NUMBERS])}")
    return name + (":" + ",".join(items) if items else "")


def _made_map(choose: Choices) -> bytes:
    def entry() -> Any:
        spec = _made_spec(choose, 2)
        return choose.one(
            [spec, {"key": spec, "value": "int4"}, {"key": "exact", "value": spec}, "@inner.json", *VALUES]
        )

    made = {"default": entry(), "layers": {choose.one(SPANS): entry() for _ in range(choose.number(4))}}
    if choose.number(3) == 1:
        made["fitted_on"] = choose.one([[dict.fromkeys(TEXT_FIELDS, "a")], *VALUES])
    return json.dumps(made).encode()


def _changed(content: bytes, choose: Choices) -> bytes:
    """With other values, and without some, at places of its JSON."""
    root = [json.loads(content)]
    for _ in range(1 + choose.number(3)):
        at, key = root, 0
        while isinstance(at[key], dict | list) and at[key] and choose.number(7):
            at = at[key]
            key = choose.one([*at] if isinstance(at, dict) else range(len(at)))
        if at is not root and choose.number(3) == 1:
            del at[key]
        else:
            at[key] = copy.deepcopy(choose.one([*VALUES, at[key]]))
    return json.dumps(root[0]).encode()


def _loaded(folder: Path) -> None:
    for entry in entries_of(folder):
        assert entry is None or entry.model_dump_json()
    load_run(folder).model_dump_json()


def _small_record() -> Run:
    """A real record of two windows and three schemes."""
    run = load_run(RECORD)
    run.windows, run.summary, run.batches = run.windows[:2], run.summary[:1], [1, 1]
    run.contenders = run.contenders[:3]
    for window in run.windows:
        for name, value in window:
            if isinstance(value, list):
                setattr(window, name, value[:3])
    return run


def _entries(run: Run) -> list[Entry]:
    return [
        Entry(
            windows=[window.model_copy(update={"index": window.index + 100})],
            batch=1,
            contenders=run.contenders[:3],
            audit=run.audit,
            noise_floor=run.noise_floor,
            seconds={"prefill": [0.5]},
            wall=1.0,
        )
        for window in run.windows
    ]


def seeds(target: str) -> list[bytes]:
    """What the fuzzer begins with, in the folder that the target works in."""
    Path("inner.json").write_text(json.dumps({"default": "int8", "layers": {"0": "int3", "1": "@inner2.json"}}))
    Path("inner2.json").write_text(json.dumps({"default": "kivi2"}))
    made = [bytes(range(first, 256)) for first in (128, 150, 180, 220)]
    examples = [family.example for family in SCHEMES.values()]
    if target == "specs":
        nested = [
            "centred(hadamard(clip(asym2)))",
            "hadamard(int4:exact_first_layers=1):sinks=4",
            "vllm/int4_per_token_head",
        ]
        others = [
            "sink-window:sinks=4,bits=4",
            "hf-hqq:bits=4,axis=0",
            "kivi:bits=2,residual_length=64",
            '@"map.json"#01234567',
        ]
        return [*(spec.encode() for spec in [*examples, *SHORT_NAMES, *nested, *others]), *made]
    if target == "maps":
        texts = [{"name": "a", "sha256": "0" * 64, "token_sha256": "1" * 64, "windows": [1, 2]}]
        contents = [
            {"default": "int4", "layers": {"0-1": "exact", "5": {"key": "asym4", "value": "asym2"}}},
            {"default": "int4:exact_last_layers=2", "layers": {"0-2": "int4:exact_first_layers=1"}, "fitted_on": texts},
            {"default": "@inner.json", "layers": {"0": "hadamard(@inner.json):only=key"}},
            {"default": {"key": "@inner.json", "value": "@map.json"}},
        ]
        return [*(json.dumps(content).encode() for content in contents), *made]
    if target == "configs":
        odd = ["a: &a [1, *a]", "seed: 2001-99-99", "out: !!binary abc", "? [a]\n: b", "<<: {seed: 1}", "seed: 1_0:59"]
        return [b"model: [a, b]\nwindows: all\nscheme:\n  - kivi4\nwait: true\n", *(one.encode() for one in odd)]
    run = _small_record()
    whole = run.model_dump_json().encode()
    if target == "records":
        Path("whole.json").write_bytes(whole)
        return [whole, b'{"schema_version": 1}', *made]
    Path("run.json").write_bytes(whole)
    lines = [entry.model_dump_json().encode() for entry in _entries(run)]
    Path("whole.journal").write_bytes(b"\n".join(lines))
    torn = b"".join(b"%08x %b\n" % (zlib.crc32(line), line) for line in lines)[:-40]
    return [b"@" + b"\n".join(lines), b"\x00" + torn, *made]


def words(target: str) -> list[str]:
    """What inputs are made of."""
    if target in ("specs", "maps"):
        names = [*SCHEMES, *SHORT_NAMES, *(rule.name for rule in RULES)]
        for family in SCHEMES.values():
            for name, field in own_fields(family).items():
                names += [f"{name}=", *map(shown, alternatives(field.type)[0]), *shorthands(family)]
        return [*names, "default", "layers", "key", "value", "fitted_on", "@inner.json", "@map.json", "0-9999"]
    if target == "configs":
        return [
            *FLAGS,
            "!!binary",
            "!!timestamp",
            "!!set",
            "!!omap",
            "<<:",
            "&a",
            "*a",
            "- ",
            "? ",
            "| ",
            "0x",
            ".inf",
            "---",
        ]
    return [*Run.model_fields, *Entry.model_fields, "NaN", "-Infinity", "1e999", "null", "true"]


TARGETS: dict[str, Callable[[bytes], None]] = {
    "specs": specs,
    "maps": maps,
    "records": records,
    "journals": journals,
    "configs": configs,
}


def fuzz(target: str, seconds: int) -> None:
    """In this process, which ends with it, and in the working folder."""
    Path("corpus").mkdir()
    for i, seed in enumerate(seeds(target)):
        Path("corpus", f"seed-{i}").write_bytes(seed)
    escaped = ["".join(f"\\x{byte:02x}" for byte in word.encode()) for word in dict.fromkeys(words(target)) if word]
    Path("words").write_text("\n".join(f'"{word}"' for word in escaped))
    longest = LONGEST if target in ("specs", "maps") else 1 << 16
    flags = [f"-max_total_time={seconds}", f"-max_len={longest}", "-timeout=20", "-rss_limit_mb=4096", "-dict=words"]
    atheris.Setup([sys.argv[0], *flags, "-artifact_prefix=./", "-print_final_stats=1", "corpus"], TARGETS[target])
    atheris.Fuzz()


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("target", nargs="?", choices=TARGETS, help="of all, where none is given")
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--here", action="store_true", help="fuzz one target in this process and folder")
    given = parser.parse_args()
    if given.here:
        fuzz(given.target, given.seconds)
    targets, broken = [given.target] if given.target else [*TARGETS], []
    for target in targets:
        folder = Path(tempfile.mkdtemp(prefix=f"kvdelta-fuzz-{target}-"))
        command = [sys.executable, __file__, target, "--here", "--seconds", str(given.seconds)]
        ended = subprocess.run(command, cwd=folder, env={**os.environ, "OMP_NUM_THREADS": "1"})
        if ended.returncode:
            broken.append(target)
            print(f"{target}: an input breaks the law; it lies in {folder}", file=sys.stderr)
        else:
            subprocess.run(["rm", "-r", str(folder)], check=True)
    print(f"{len(targets)} targets, {given.seconds} s each; broken: {', '.join(broken) or 'none'}")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
