"""Sections on what the figures rest on: audit and controls, provenance, and the raw data."""

import base64
import csv
import gzip
import io
from collections.abc import Sequence

from kvdelta.analysis.pages.found import KINDS, Found
from kvdelta.analysis.pages.keys import model_of
from kvdelta.analysis.pages.parts import Section
from kvdelta.analysis.reading.cells import Cell
from kvdelta.analysis.reading.tables import Table, number, windows_of
from kvdelta.harness.records.run import Header, Run, named
from kvdelta.schemes.given import parse_json, read_bytes


def audit_section(cells: Sequence[Cell]) -> Section | None:
    if not cells:
        return None
    header = [
        "run",
        "exact again is exact",
        "zeroed codes are seen",
        "floor: KL",
        "ΔNLL",
        "read K; read V",
        "not believed",
    ]
    body, notes = [], []
    for cell in cells:
        run, audit = cell.run, cell.run.audit
        floor = run.noise_floor
        moved = list(audit.zeroed_codes_move_logits.values())
        read = [(row.key_coverage, row.value_coverage) for _, row in cell.rows.values() if not row.error]
        body.append([
            cell.name, _yes(audit.identity_is_exact), f"{sum(moved)} of {len(moved)}" if moved else "–",
            *(["–", "–"] if floor is None else [number(floor.kl, 2), number(floor.delta_nll, 2)]),
            _span([k for k, _ in read]) + "; " + _span([v for _, v in read]), str(len(audit.failures) or "none"),
        ])  # fmt: skip
        notes += [f"{cell.name}: {label}: {'; '.join(reasons)}" for label, reasons in audit.failures.items()]
        notes += [f"{cell.name}: {one.label} failed: {one.error}" for one in run.contenders if one.error]
    text = [
        "Each run proves that its scored forward read what was stored: exact by another route gives the same losses up to the noise "
        "floor; with its codes zeroed a scheme must give other logits; and the share of attended pairs that came from packed "
        "storage is counted. A row that fails this has no score."
    ]
    return Section("audit", "Audit and controls", text, tables=[("", (header, body))], notes=notes)


def _yes(said: bool | None) -> str:
    return {None: "not checked", True: "yes", False: "no"}[said]


def _span(values: Sequence[float]) -> str:
    if not values:
        return "–"
    low, high = f"{min(values):.3f}", f"{max(values):.3f}"
    return low if low == high else f"{low} to {high}"


def provenance_section(found: Found, command: str) -> Section:
    tables = [
        (f"{cell.name}: {cell.folder}", _of(cell.run, "run", _file_hash(cell.folder, "run.json")))
        for cell in found.cells
    ]
    seen = {cell.folder for cell in found.cells}
    for joined in found.measured:
        for kind in KINDS:
            for folder, record, _ in getattr(joined, kind):
                tables.append(
                    (f"{kind}, {model_of(record)}: {folder}", _of(record, kind, _file_hash(folder, f"{kind}.json")))
                )
        for folder, run in joined.runs:
            if folder not in seen:
                tables.append(
                    (f"run beside, {model_of(run)}: {folder}", _of(run, "run", _file_hash(folder, "run.json")))
                )
    for folder, replay, _ in found.replays:
        tables.append(
            (f"replay, {model_of(replay)}: {folder}", _of(replay, "replay", _file_hash(folder, "replay.json")))
        )
    for folder, run, _ in found.allocations:
        if folder not in seen:
            tables.append((f"allocation, {model_of(run)}: {folder}", _of(run, "run", _file_hash(folder, "run.json"))))
    for folder, one in found.recommendations:
        lines = [
            ["command", one.command],
            ["commit", one.commit or "unknown"],
            ["record", _file_hash(folder, "recommend.json")],
        ]
        tables.append((f"recommendation: {folder}", ([], lines)))
    for folder, bench in found.benches:
        host = ", ".join(f"{name} {value}" for name, value in bench.host.items() if value is not None)
        lines = [["command", bench.command], ["commit", bench.commit or "unknown"], ["model", bench.model_name], ["on", f"{bench.device}, {bench.dtype}; {host}"],
                 ["versions", _versions(bench.versions)], ["record", _file_hash(folder, "bench.json")]]  # fmt: skip
        tables.append((f"bench: {folder}", ([], lines)))
    text = [
        "Where each figure comes from; the same command finds its record again, and `kvdelta verify` says whether it is as it was written."
    ]
    return Section("provenance", "Provenance", text, tables=[("This page", ([], [["command", command]])), *tables])


def _of(record: Header, kind: str, sha256: str) -> Table:
    settings = record.settings
    count = len(record.windows) if isinstance(record, Run) else len(settings.windows)
    protocol = f", {named(settings)}" if kind in ("run", "replay") else ""
    lines = [
        ["command", record.command],
        ["model", record.model_name],
        ["model id", "; ".join(f"{name} {value}" for name, value in settings.model.items())],
        ["text", f"{record.text_name}, {record.text_tokens:,} tokens, SHA-256 of their ids {settings.text_sha256}"],
        ["scored", f"{windows_of(settings, count)}{protocol}"],
        ["on", f"{settings.device}, {settings.dtype}, {settings.attention} attention, seed {settings.seed}"],
        ["versions", f"kvdelta {record.kvdelta}, {_versions(settings.versions)}; measures {settings.measures}"],
        ["commit", record.commit or "unknown"],
        ["record", sha256],
    ]
    return [], lines


def _versions(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items() if name != "kvdelta")


def _file_hash(folder: object, name: str) -> str:
    """What the record says its content's hash is; older records say none."""
    content = parse_json(read_bytes(f"{folder}/{name}", "record"))
    said = content.get("sha256") if isinstance(content, dict) else None
    return f"{name}, SHA-256 {said}" if said else f"{name}, from before records had hashes"


def data_section() -> Section:
    return Section("data", "Data", ["The rows are those of `kvdelta show --format json`, with their run and front."])


def window_losses(cells: Sequence[Cell]) -> bytes:
    """A line a run, scheme and window, as CSV: nats summed over its tokens; nll of exact, and of the others what they lose more."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["run", "scheme", "window", "start", "tokens", "nll", "more_than_exact", "kl", "top1"])
    for cell in cells:
        for i, contender in enumerate(cell.run.contenders):
            for window in cell.windows:
                nll = f"{window.nll[0]:.8g}" if i == 0 else ""
                more, kl = f"{window.nll[i] - window.nll[0]:.5g}", f"{window.kl[i]:.5g}"
                place = (window.index, window.start, window.count)
                writer.writerow([cell.name, contender.label, *place, nll, more, kl, window.top1[i]])
    return out.getvalue().encode()


def files_of(found: Found) -> list[dict[str, str]]:
    if not found.cells:
        return []
    packed = gzip.compress(window_losses(found.cells), 9, mtime=0)
    title = f"Losses by window, CSV in gzip ({max(1, round(len(packed) / 1000))} kB)"
    return [{"name": "losses-by-window.csv.gz", "title": title, "content": base64.b64encode(packed).decode()}]
