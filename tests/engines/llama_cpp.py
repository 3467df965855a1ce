"""llama.cpp's KV cache beside this project's rows: the same weights, the same tokens, each against its own exact run.

Five steps, each a command. `engine` and `dequantize` need llama-cpp-python and NumPy alone, the others this project, so that the
two may live in two environments; files go between them. llama-cpp-python has no wheels with a library in it on the package
index: `pip install llama-cpp-python==0.3.36` compiles llama.cpp (a C++ compiler, CMake from the index; 4 minutes on 2 cores).

    python tests/engines/llama_cpp.py tokens --text wiki.test.raw --windows 16 --out tokens.npz
    python tests/engines/llama_cpp.py ours --tokens tokens.npz --out ours.npz
    python tests/engines/llama_cpp.py dequantize --gguf model.gguf --out model-f32.gguf
    python tests/engines/llama_cpp.py engine --gguf model-f32.gguf --tokens tokens.npz --out engine-f32.npz
    python tests/engines/llama_cpp.py engine --gguf model.gguf --tokens tokens.npz --out engine.npz
    python tests/engines/llama_cpp.py table --ours ours.npz --engine engine-f32.npz --engine engine.npz --out summary.json

A window is a prefix and a suffix; the suffix's tokens but the first are scored. Losses and KL are in nats, [windows, scored].
Files are written after each window, and a command that finds its own goes on behind the last; `table` takes the windows that all of
them have.
"""

import argparse
import ctypes
import hashlib
import json
import os
import re
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

ROOT = str(Path(__file__).resolve().parents[2])
Rows = dict[str, np.ndarray]  # by "nll ROW" and "kl ROW", float32 [windows, scored]

EXACT = "f32/f32"


@dataclass(frozen=True)
class Cell:
    """Types of keys and values; whether what is quantized is rotated, as llama.cpp does by default."""

    key: str
    value: str
    rotated: bool = True

    @property
    def name(self) -> str:
        types = f"{self.key}/{self.value}"
        return types if not self.quantized else f"{types} {'rotated' if self.rotated else 'bare'}"

    @property
    def quantized(self) -> bool:
        return self.key.startswith("q") or self.value.startswith("q")

    @property
    def spec(self) -> str:
        """This project's scheme; a side in f16 or f32 is exact there."""
        sides = {side: type for side, type in (("key", self.key), ("value", self.value)) if type.startswith("q")}
        types = set(sides.values())
        if len(types) == 1:
            only = "" if len(sides) == 2 else f"only={next(iter(sides))}"
            if self.rotated:
                return f"llama.cpp:type={types.pop()}" + (f",{only}" if only else "")
            return types.pop() + (f":{only}" if only else "")
        if not self.rotated:
            raise ValueError(f"{self.name}: a spec of two types is a rotated one")
        return f"llama.cpp:key_type={self.key},value_type={self.value}"


CELLS = (
    Cell("q8_0", "q8_0"),
    Cell("q8_0", "q8_0", rotated=False),
    Cell("q4_0", "q4_0"),
    Cell("q4_0", "q4_0", rotated=False),
    Cell("q8_0", "q4_0"),
    Cell("q4_0", "f16"),
    Cell("f16", "q4_0"),
)


# --- the engine


@dataclass(frozen=True)
class Route:
    """How llama.cpp computes a row. flash: its fused attention, which a quantized V asks for. ubatch: tokens a forward."""

    cell: Cell
    flash: bool = True
    ubatch: int = 512
    suffix: str = ""

    @property
    def name(self) -> str:
        return self.cell.name + self.suffix


ROUTES = (
    Route(Cell("f32", "f32"), flash=False),  # the exact run: unfused, since the fused one makes float32 float16
    Route(Cell("f32", "f32"), flash=False, ubatch=64, suffix=", forwards of 64"),
    Route(Cell("f16", "f16")),
    Route(Cell("f16", "f16"), ubatch=64, suffix=", forwards of 64"),
    *(Route(cell) for cell in CELLS),
    Route(Cell("q4_0", "q4_0"), ubatch=64, suffix=", forwards of 64"),
    Route(Cell("q4_0", "f32"), flash=False, suffix=", unfused"),
)


class Engine:
    """A GGUF model in llama.cpp on the CPU."""

    def __init__(self, gguf: str, threads: int):
        import llama_cpp

        self.api, self.threads, self.said = llama_cpp, threads, []
        self._log = llama_cpp.llama_log_callback(lambda level, text, data: self.said.append(text.decode()))
        llama_cpp.llama_log_set(self._log, ctypes.c_void_p(0))  # the callback must outlive the library's use of it
        llama_cpp.llama_backend_init()
        params = llama_cpp.llama_model_default_params()
        params.use_extra_bufts = (
            False  # no repacked weights: AMX code, where a virtual machine shows AMX and forbids it, is fatal
        )
        self.model = llama_cpp.llama_model_load_from_file(gguf.encode(), params)
        if not self.model:
            raise SystemExit(f"llama.cpp cannot load {gguf}: {''.join(self.said)[-500:]}")
        self.vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))

    def _context(self, route: Route, room: int, scored: int) -> Any:
        api, params = self.api, self.api.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = room, room, route.ubatch
        params.n_outputs_max = scored
        params.n_threads = params.n_threads_batch = self.threads
        params.type_k, params.type_v = (
            getattr(api, f"GGML_TYPE_{type.upper()}") for type in (route.cell.key, route.cell.value)
        )
        kind = "ENABLED" if route.flash else "DISABLED"
        params.flash_attn_type = getattr(api, f"LLAMA_FLASH_ATTN_TYPE_{kind}")
        os.environ["LLAMA_ATTN_ROT_DISABLE"] = "0" if route.cell.rotated else "1"  # read when a context is made
        self.said.clear()
        context = api.llama_init_from_model(self.model, params)
        if not context:
            raise SystemExit(f"llama.cpp makes no context for {route.name}: {''.join(self.said)[-500:]}")
        said = dict(re.findall(r"(attn_rot_[kv]) = (\d)", "".join(self.said)))
        wanted = {
            f"attn_rot_{side}": str(int(route.cell.rotated and type.startswith("q")))
            for side, type in (("k", route.cell.key), ("v", route.cell.value))
        }
        if said != wanted:
            raise SystemExit(
                f"{route.name}: llama.cpp says {said}, expected {wanted}; heads of 64 channels or more rotate"
            )
        return context

    def logits(self, route: Route, tokens: np.ndarray, prefix: int) -> np.ndarray:
        """float32 [scored, vocabulary] that predict the suffix but its first token. tokens: int [window]."""
        api, fed = self.api, tokens[:-1]
        context = self._context(route, len(tokens), len(fed) - prefix)
        try:
            for first, last, wanted in ((0, prefix, False), (prefix, len(fed), True)):
                batch = api.llama_batch_init(last - first, 0, 1)
                batch.n_tokens = last - first
                for i, token in enumerate(fed[first:last]):
                    batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0] = int(token), first + i, 1, 0
                    batch.logits[i] = wanted
                failed = api.llama_decode(context, batch)
                api.llama_batch_free(batch)
                if failed:
                    raise SystemExit(f"{route.name}: llama_decode returned {failed}")
            held = np.ctypeslib.as_array(api.llama_get_logits(context), shape=(len(fed) - prefix, self.vocabulary))
            return held.copy()
        finally:
            api.llama_free(context)

    def tokenize(self, text: str) -> list[int]:
        vocab, data = self.api.llama_model_get_vocab(self.model), text.encode()
        ids = (self.api.llama_token * (len(data) + 8))()
        count = self.api.llama_tokenize(vocab, data, len(data), ids, len(ids), False, False)
        return list(ids[:count])


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Over the last axis, in place."""
    logits -= logits.max(axis=-1, keepdims=True)
    logits -= np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    return logits


def kl_from(log_p: np.ndarray, log_q: np.ndarray) -> np.ndarray:
    """KL(p ‖ q) in nats, [rows], as Σ p·(expm1(δ) − δ) with δ = log q − log p: no term is negative, nothing cancels."""
    kl = np.empty(len(log_p), np.float32)
    for i, (p, q) in enumerate(zip(log_p, log_q, strict=True)):
        delta = (q - p).clip(max=80)  # beyond it q is all there is, and exp overflows
        kl[i] = np.sum(np.exp(p) * (np.expm1(delta) - delta))
    return kl


def engine(args: argparse.Namespace) -> None:
    given = np.load(args.tokens)
    windows, prefix = given["windows"][: args.windows], int(given["prefix"])
    llama = Engine(args.gguf, args.threads)
    routes = [route for route in ROUTES if not args.row or route.name in (EXACT, *args.row)]
    meta = {
        "llama-cpp-python": llama.api.__version__,
        "llama.cpp": args.commit,
        "system": llama.api.llama_print_system_info().decode().strip(),
        "gguf": Path(args.gguf).name,
        "gguf_sha256": hashlib.sha256(Path(args.gguf).read_bytes()).hexdigest(),
        "tokens_sha256": str(given["sha256"]),
    }
    if args.text:
        ids, all_ids = llama.tokenize(Path(args.text).read_text(encoding="utf-8")), given["all"]
        other = int((np.array(ids) != all_ids).sum()) if len(ids) == len(all_ids) else "all"
        meta["own_tokenizer"] = f"{len(ids)} tokens, {other} of them not the harness's {len(all_ids)}"
        print(f"llama.cpp's own tokenizer: {meta['own_tokenizer']}", flush=True)
    collected = resumed(args.out, meta, [route.name for route in routes])
    for number, tokens in remaining(windows, collected):
        exact = np.empty(0)
        targets = tokens[prefix + 1 :]
        for route in routes:
            started = time.perf_counter()
            log_q = log_softmax(llama.logits(route, tokens, prefix))
            if route.name == EXACT:
                exact = log_q
            nll = -log_q[np.arange(len(targets)), targets]
            collect(collected, route.name, nll, kl_from(exact, log_q))
            say(collected, route.name, number, started)
        save(args.out, collected, meta)


def collect(collected: dict[str, list[np.ndarray]], row: str, nll: np.ndarray, kl: np.ndarray) -> None:
    collected.setdefault(f"nll {row}", []).append(np.asarray(nll, np.float32))
    collected.setdefault(f"kl {row}", []).append(np.asarray(kl, np.float32))


def resumed(out: str, meta: dict[str, str], rows: Sequence[str]) -> dict[str, list[np.ndarray]]:
    """What `out` has of these rows, where it is of the same tokens and has them all: a run goes on behind its last window."""
    if not Path(out).exists():
        return {}
    before, held = loaded_rows(out)
    keys = [f"{what} {row}" for row in rows for what in ("nll", "kl")]
    if before["tokens_sha256"] != meta["tokens_sha256"] or not held.keys() >= set(keys):
        raise SystemExit(f"{out} is there and holds something else; name another file, or remove it")
    return {key: list(held[key]) for key in keys}


def remaining(windows: np.ndarray, collected: dict[str, list[np.ndarray]]) -> Iterable[tuple[int, np.ndarray]]:
    """(number from 1, tokens) of the windows that are still to be scored."""
    done = len(collected.get(f"nll {EXACT}", []))
    return list(enumerate(windows, 1))[done:]


def say(collected: dict[str, list[np.ndarray]], row: str, number: int, started: float) -> None:
    nll, kl = (collected[f"{what} {row}"][-1] for what in ("nll", "kl"))
    delta = float((nll.astype(np.float64) - collected[f"nll {EXACT}"][-1]).mean())
    took = time.perf_counter() - started
    print(f"window {number}: {row}: nll {nll.mean():.5f} Δ {delta:+.6f} KL {kl.mean():.3g} ({took:.1f} s)", flush=True)


def save(out: str, collected: dict[str, list[np.ndarray]], meta: dict[str, str]) -> None:
    part = Path(out).with_suffix(".part.npz")
    np.savez_compressed(part, meta=json.dumps(meta), **{key: np.stack(rows) for key, rows in collected.items()})
    part.replace(out)


def dequantize(args: argparse.Namespace) -> None:
    """The same weights as float32: llama.cpp then multiplies float32 by float32, where it rounds activations to 8 bits otherwise."""
    import llama_cpp

    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.allow_requantize, params.nthread = llama_cpp.LLAMA_FTYPE_ALL_F32, True, args.threads
    failed = llama_cpp.llama_model_quantize(args.gguf.encode(), args.out.encode(), ctypes.byref(params))
    if failed:
        raise SystemExit(f"llama.cpp cannot dequantize {args.gguf}: {failed}")


# --- this project

PAIRED = ("llama",)
"""Architectures whose keys GGUF files have with the two channels of a RoPE pair side by side; others as transformers has them."""


AGAIN = ", jittered"
JITTER = 1e-5
"""Relative, of each number before it is written: what sums in another order may make of it some layers up."""


def our_rows(cell: Cell, paired: bool, between: bool) -> Iterable[str]:
    """two-pass, step 16 and step 1 (in one forward whose tokens meet themselves exactly) are this project's rows; matched is what
    llama.cpp does. between: instead, what leads from one to the other, one thing at a time: over an exact prefill; with queries as
    they come; with channels in transformers' order; and matched with JITTER, which says how far two runs of one rule may be apart, since a number at
    a boundary between two codes gets the one or the other."""
    if not between:
        yield from ("two-pass", "step 16", "step 1", "matched")
        return
    yield from ("matched, exact prefill", "matched, exact queries", f"matched{AGAIN}")
    if paired:
        yield "matched, other order"


def tokens(args: argparse.Namespace) -> None:
    """The windows as the harness cuts them, BOS where the tokenizer adds one."""
    from kvdelta.harness.options import Options
    from kvdelta.harness.subject.model import load_model
    from kvdelta.harness.subject.prepared import bos_of
    from kvdelta.harness.subject.text import load_text, token_sha256, tokenize
    from kvdelta.harness.subject.windows import cut_windows

    loaded = load_model(args.model)
    ids = tokenize(load_text(args.text), loaded.tokenizer)
    bos = bos_of(Options(), loaded)
    windows = cut_windows(
        ids, window_length=args.window_length, score_length=args.score_length, windows=args.windows, bos_token_id=bos
    )
    np.savez_compressed(
        args.out,
        windows=np.stack([window.tokens.numpy() for window in windows]).astype(np.int32),
        prefix=windows[0].prefix_length,
        starts=np.array([window.start for window in windows]),
        all=ids.numpy().astype(np.int32),
        sha256=token_sha256(ids),
    )
    print(f"{len(windows)} windows of {len(ids)} tokens, BOS {bos}")


def ours(args: argparse.Namespace) -> None:
    import torch
    import transformers

    from kvdelta.harness import SchemeCache, load_model
    from kvdelta.harness.protocols import fill_live, prefill, suffix_logits
    from kvdelta.harness.scoring import Reference
    from kvdelta.harness.subject.windows import Batch, Window
    from kvdelta.schemes import parse_scheme
    from tests.engines.matched_cache import MatchedCache, exact_own_token, quantized_queries

    torch.set_num_threads(args.threads)
    given = np.load(args.tokens)
    prefix = int(given["prefix"])
    loaded = load_model(args.model)
    model, config = loaded.model, loaded.model.config
    paired = config.model_type in PAIRED
    cells = [cell for cell in CELLS if not args.row or cell.name in args.row]
    meta = {
        "model": loaded.name,
        **{f"model_{key}": value for key, value in loaded.source.items()},
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "tokens_sha256": str(given["sha256"]),
    }
    rows = {cell: list(our_rows(cell, paired, args.between)) for cell in cells}
    collected = resumed(args.out, meta, [EXACT, *(f"{cell.name}, {row}" for cell in cells for row in rows[cell])])
    for number, ids in remaining(given["windows"][: args.windows], collected):
        window = Window(number - 1, 0, torch.from_numpy(ids).long(), prefix)
        batch, suffix, prefilled = Batch((window,)), window.suffix, prefill(model, window.prefix)

        exact = MatchedCache(config, "f32", "f32", rotated=False).written(prefilled)
        reference = Reference(suffix_logits(model, exact, suffix))
        itself = reference.itself(batch.targets)
        collect(collected, EXACT, itself.nll[0].numpy(), itself.kl[0].numpy())
        for cell in cells:
            for row in rows[cell]:
                began = time.perf_counter()
                ordered = paired and row not in ("step 1", "matched, other order")  # schemes have transformers' order
                f16_as = "f32" if row == "step 1" else "f16"  # and as it came what llama.cpp stores as f16
                types = [type.replace("f16", f16_as) for type in (cell.key, cell.value)]
                jitter = JITTER if row.endswith(AGAIN) else 0
                cache: Any = MatchedCache(config, *types, rotated=cell.rotated, paired=ordered, jitter=jitter)
                around: Any = nullcontext()
                if row == "step 1":
                    around = exact_own_token(model, cache)
                elif row in ("two-pass", "step 16"):
                    cache = SchemeCache.for_model(parse_scheme(cell.spec), model).fill(prefilled)
                elif cell.key.startswith("q") and row != "matched, exact queries":
                    around = quantized_queries(model, cell.rotated, ordered)
                if row in ("step 1", "matched, exact prefill"):
                    cache.written(prefilled)
                with around:
                    if row.startswith("matched") and row != "matched, exact prefill":
                        fill_live(model, window.prefix, cache)
                    logits = suffix_logits(model, cache, suffix, 16 if row == "step 16" else None)
                scores = reference.score(logits, batch.targets)
                collect(collected, f"{cell.name}, {row}", scores.nll[0].numpy(), scores.kl[0].numpy())
                say(collected, f"{cell.name}, {row}", number, began)
        save(args.out, collected, meta)


# --- both


def loaded_rows(path: str) -> tuple[dict[str, str], Rows]:
    """paths, joined by commas, of the same tokens: what they have together, of a row the longer. SystemExit: exact runs that differ."""
    meta: dict[str, str] = {}
    rows: Rows = {}
    for one in path.split(","):
        with np.load(one) as file:
            meta = json.loads(str(file["meta"])) | meta
            for key in file.files:
                if key == "meta":
                    continue
                common = min(len(file[key]), len(rows[key])) if key in rows else 0
                if key == f"nll {EXACT}" and not np.allclose(file[key][:common], rows.get(key, file[key])[:common]):
                    raise SystemExit(f"{one}: another exact run than that of the files before it")
                if not common or len(file[key]) > common:
                    rows[key] = file[key]
    return meta, rows


UNITS = 7
"""Of a window of 511 scored tokens: 73 tokens each."""


def figures(rows: Rows, row: str, windows: int) -> dict[str, float]:
    """ΔNLL from the file's own exact run with its standard error, and mean KL."""
    delta = _mean_of_units(token_deltas(rows, row, windows))
    kl = rows[f"kl {row}"][:windows].astype(np.float64)
    return {"windows": len(kl), "delta": delta.delta, "se": delta.se, "kl": float(kl.mean())}


def _mean_of_units(deltas: np.ndarray) -> Any:
    """The mean with its interval. A few windows have none worth the name: the units are UNITS pieces of a window, where it has
    so many tokens. Its error is too small where tokens further apart than that are correlated."""
    from kvdelta.harness.statistics import paired_delta

    pieces = deltas.reshape(-1, deltas.shape[1] // UNITS) if deltas.shape[1] % UNITS == 0 else deltas
    return paired_delta(pieces.sum(axis=1), np.zeros(len(pieces)), np.full(len(pieces), pieces.shape[1]))


def token_deltas(rows: Rows, row: str, windows: int) -> np.ndarray:
    """[windows that the row has, scored], float64, nats."""
    some = rows[f"nll {row}"][:windows].astype(np.float64)
    return some - rows[f"nll {EXACT}"][: len(some)]


def against(theirs: Rows, row: str, mine: Rows, my_row: str, windows: int) -> dict[str, float]:
    """What the engine loses more than ours, with its 95 % interval; the correlation of the differences over tokens, and of the
    logarithms of KL; the ratio of mean KL. Over the windows that both rows have."""
    both = min(windows, len(theirs[f"nll {row}"]), len(mine[f"nll {my_row}"]))
    a, b = token_deltas(theirs, row, both), token_deltas(mine, my_row, both)
    more = _mean_of_units(a - b)
    kl, my_kl = (one[f"kl {name}"][:both].astype(np.float64) for one, name in ((theirs, row), (mine, my_row)))
    return {
        "windows": both,
        "more": more.delta,
        "low": more.low,
        "high": more.high,
        "correlation": _correlation(a, b),
        "log_kl_correlation": _correlation(np.log(kl + 1e-9), np.log(my_kl + 1e-9)),
        "kl_ratio": float(kl.mean() / my_kl.mean()),
        "kl_more": (kl_more := _mean_of_units(kl - my_kl)).delta,
        "kl_low": kl_more.low,
        "kl_high": kl_more.high,
    }


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1]) if a.std() and b.std() else float("nan")


def names(rows: Rows) -> list[str]:
    return [key.removeprefix("nll ") for key in rows if key.startswith("nll ")]


def joined(mine: tuple[dict[str, str], Rows], engines: Sequence[tuple[dict[str, str], Rows]]) -> dict[str, Any]:
    """The summary of `table`: every row of every file, and for each cell the engine beside our rows.

    ValueError: files of other tokens."""
    meta, rows = mine
    for other, _ in engines:
        if other["tokens_sha256"] != meta["tokens_sha256"]:
            raise ValueError("the files are of other tokens")
    every = len(rows[f"nll {EXACT}"])
    summary: dict[str, Any] = {
        "scored_a_window": rows[f"nll {EXACT}"].shape[1],
        "ours": {"meta": meta, "exact_nll": _mean(rows, every)},
        "engines": [],
    }
    summary["ours"]["rows"] = {row: figures(rows, row, every) for row in names(rows) if row != EXACT}
    for other, file in engines:
        both = min(every, len(file[f"nll {EXACT}"]))
        exact, my_exact = file[f"nll {EXACT}"][:both].astype(np.float64), rows[f"nll {EXACT}"][:both]
        one: dict[str, Any] = {
            "meta": other,
            "exact_nll": _mean(file, both),
            "exact_from_ours": {
                "windows": both,
                "mean": float((exact - my_exact).mean()),
                "rms": float(np.sqrt(((exact - my_exact) ** 2).mean())),
                "correlation": _correlation(exact, my_exact),
            },
            "rows": {row: figures(file, row, both) for row in names(file) if row != EXACT},
            "against": {},
        }
        for row in names(file):
            cell = row.split(",")[0]
            mine_here = [name for name in names(rows) if name.startswith(f"{cell}, ")]
            if mine_here:
                one["against"][row] = {
                    name.removeprefix(f"{cell}, "): against(file, row, rows, name, both) for name in mine_here
                }
        summary["engines"].append(one)
    again = [row for row in names(rows) if row.endswith(AGAIN)]
    summary["ours"]["again"] = {
        row.split(",")[0]: against(rows, row, rows, row.removesuffix(AGAIN), every) for row in again
    }
    return summary


def _mean(rows: Rows, windows: int) -> float:
    return float(rows[f"nll {EXACT}"][:windows].astype(np.float64).mean())


def written_out(summary: dict[str, Any]) -> Iterable[str]:
    """Lines of Markdown."""
    my_rows = summary["ours"]["rows"]
    yield f"windows of {summary['scored_a_window']} scored tokens; exact NLL {summary['ours']['exact_nll']:.5f}"
    for one in summary["engines"]:
        off = one["exact_from_ours"]
        yield ""
        yield (
            f"{one['meta']['gguf']}: exact NLL {one['exact_nll']:.5f}, a token {off['rms']:.2g} (rms) from ours, "
            f"correlation {off['correlation']:.7f}, {off['windows']} windows"
        )
        yield ""
        yield "| K/V | windows | llama.cpp | KL | ours | ΔNLL | KL | engine − ours [95 %] | KL: engine − ours [95 %] | KL ratio | r ΔNLL | r log KL |"
        yield "|---|---:|---:|---:|---|---:|---:|---:|---:|---:|---:|---:|"
        for row, theirs in one["rows"].items():
            head = f"| {row} | {theirs['windows']} | {theirs['delta']:+.5f} ± {theirs['se']:.5f} | {theirs['kl']:.2g} |"
            beside = one["against"].get(row, {})
            if not beside:
                yield f"{head}  |  |  |  |  |  |  |  |"
            for name, its in beside.items():
                mine = my_rows[f"{row.split(',')[0]}, {name}"]
                yield (
                    f"{head} {name} | {mine['delta']:+.5f} ± {mine['se']:.5f} | {mine['kl']:.2g} | "
                    f"{its['more']:+.5f} [{its['low']:+.5f}, {its['high']:+.5f}] | "
                    f"{its['kl_more']:+.2g} [{its['kl_low']:+.2g}, {its['kl_high']:+.2g}] | {its['kl_ratio']:.2f} | "
                    f"{its['correlation']:.3f} | {its['log_kl_correlation']:.3f} |"
                )
                head = "| | | | |"
    for cell, its in summary["ours"]["again"].items():
        yield (
            f"{cell}, matched with jitter against matched without: KL ratio {its['kl_ratio']:.2f}, r {its['correlation']:.3f}, "
            f"r log KL {its['log_kl_correlation']:.3f}, {its['windows']} windows"
        )


def table(args: argparse.Namespace) -> None:
    summary = joined(loaded_rows(args.ours), [loaded_rows(path) for path in args.engine])
    if args.out:
        Path(args.out).write_text(json.dumps(rounded(summary), indent=1, ensure_ascii=False) + "\n")
    print("\n".join(written_out(summary)))


def rounded(x: Any) -> Any:
    if isinstance(x, float):
        return float(f"{x:.6g}")
    if isinstance(x, dict):
        return {key: rounded(value) for key, value in x.items()}
    return [rounded(value) for value in x] if isinstance(x, list) else x


def parser() -> argparse.ArgumentParser:
    whole = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = whole.add_subparsers(required=True)

    def command(run: Any, help: str) -> argparse.ArgumentParser:
        one = commands.add_parser(run.__name__, help=help)
        one.set_defaults(run=run)
        return one

    one = command(tokens, "cut the windows (this project)")
    one.add_argument("--model", help="GGUF file; default: the packaged model")
    one.add_argument("--text", required=True)
    one.add_argument("--windows", type=int, default=16)
    one.add_argument("--window-length", type=int, default=2048)
    one.add_argument("--score-length", type=int, default=512)
    one.add_argument("--out", required=True)

    one = command(ours, "score them over matched caches and this project's rows")
    one.add_argument("--model", help="GGUF file; default: the packaged model")
    one.add_argument("--tokens", required=True)
    one.add_argument("--windows", type=int)
    one.add_argument("--row", action="append", help='only this cell, such as "q4_0/q4_0 rotated"; repeated')
    one.add_argument(
        "--between", action="store_true", help="the rows between this project's and the matched one instead"
    )
    one.add_argument("--threads", type=int, default=1)
    one.add_argument("--out", required=True)

    one = command(dequantize, "the same weights as float32 (llama-cpp-python)")
    one.add_argument("--gguf", required=True)
    one.add_argument("--threads", type=int, default=1)
    one.add_argument("--out", required=True)

    one = command(engine, "score them in llama.cpp (llama-cpp-python)")
    one.add_argument("--gguf", required=True)
    one.add_argument("--tokens", required=True)
    one.add_argument("--windows", type=int)
    one.add_argument(
        "--row", action="append", help='only this row beside f32/f32, such as "q4_0/q4_0 rotated"; repeated'
    )
    one.add_argument("--text", help="also compare llama.cpp's own tokens of this text")
    one.add_argument("--commit", default="unknown", help="of llama.cpp, for the record")
    one.add_argument("--threads", type=int, default=1)
    one.add_argument("--out", required=True)

    one = command(table, "join the files (this project)")
    one.add_argument("--ours", required=True, help="a file, or several of the same tokens joined by commas")
    one.add_argument("--engine", action="append", required=True, help="the same; repeated for other weights")
    one.add_argument("--out", help="JSON")
    return whole


if __name__ == "__main__":
    sys.path[0] = ROOT  # not this folder, whose llama_cpp.py would hide the package
    args = parser().parse_args()
    args.run(args)
