"""What the records in results/ say, each read once a session."""

import json
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from kvdelta.analysis.reading.ablations import AblationRow, AdditivityRow, additivity_rows, layer_rows
from kvdelta.analysis.reading.agreement import AgreementRow as MeasureRow
from kvdelta.analysis.reading.agreement import ranking
from kvdelta.analysis.reading.carry_rows import AgreementRow
from kvdelta.analysis.reading.carrying import Carried
from kvdelta.analysis.reading.cells import gather_cells
from kvdelta.analysis.reading.depths import DepthRow, depth_rows
from kvdelta.analysis.reading.grids import grid_of
from kvdelta.analysis.reading.joined import Joined, gather
from kvdelta.analysis.reading.protocols import ProtocolRow, protocol_rows
from kvdelta.analysis.reading.questions import questions_of
from kvdelta.analysis.reading.replays import PositionRow, whole_rows
from kvdelta.analysis.reading.summary import SummaryRow, find, summarize
from kvdelta.harness.records.recommendation import Recommendation, load_recommendation
from kvdelta.harness.records.replay import STEPS, load_replay
from kvdelta.harness.records.run import Run
from kvdelta.harness.records.run_folder import load_run, run_folders

RESULTS = Path(__file__).parents[2] / "results"
MODELS = ("smollm2", "qwen")  # folders of grids


@cache
def run(folder: str) -> Run:
    return load_run(RESULTS / folder)


@cache
def rows(folder: str) -> Mapping[str, SummaryRow]:
    """Rows of a run by the label of the scheme, without the calibration's file."""
    return {plain(row.scheme): row for row in summarize(run(folder))}


def plain(label: str) -> str:
    return re.sub(r",calibration=[^,)]*", "", label)


def difference(folder: str, scheme: str, baseline: str) -> SummaryRow:
    """A scheme against another, on the same windows, however either is spelled."""
    return summarize(run(folder), baseline)[find(run(folder), scheme)]


@cache
def places(grid: str) -> tuple[str, ...]:
    """Folders of a grid of two models and two protocols: SmolLM2 in two passes, in steps of 16; Qwen2.5 the same."""
    found = [place for model in MODELS for place in run_folders(RESULTS / grid / model)]
    return tuple(place.relative_to(RESULTS).as_posix() for place in found)


def four(grid: str) -> list[Mapping[str, SummaryRow]]:
    """Rows of its `places`."""
    return [rows(place) for place in places(grid)]


def kls(grid: str, scheme: str) -> list[float]:
    return [cell[scheme].kl for cell in four(grid)]


def deltas(grid: str, scheme: str) -> list[float]:
    return [cell[scheme].delta_nll for cell in four(grid)]


@cache
def carried(*folders: str) -> Carried:
    """By KL."""
    cells, _ = gather_cells([RESULTS / folder for folder in folders])
    return Carried(grid_of(cells, "kl"))


def carried_grid(grid: str) -> Carried:
    return carried(*(f"{grid}/{model}" for model in MODELS))


@cache
def front(grid: str) -> frozenset[str]:
    """Schemes that none of no more bits beats in any cell."""
    return frozenset(plain(row.scheme) for row in carried_grid(grid).order if row.front)


def order_agreement(of: Carried, first: int, second: int) -> AgreementRow:
    """Between two cells, by their places in the grid."""
    names = {of.grid.cells[first].name, of.grid.cells[second].name}
    return next(row for row in of.agreement if {row.cell, row.other} == names)


@cache
def depths(folder: str) -> Mapping[str, list[DepthRow]]:
    """By scheme, the shortest prefix first."""
    return {line[0].scheme: line for line in depth_rows(carried(folder).grid)}


@cache
def decoded(folder: str) -> Mapping[str, Mapping[str, ProtocolRow]]:
    """By scheme and protocol: "two-pass", "stepwise (step 16)"."""
    runs = [load_run(place) for place in run_folders(RESULTS / folder)]
    return {line[0].scheme: {row.protocol: row for row in line} for line in protocol_rows(runs)}


@cache
def replayed(folder: str) -> Mapping[str, PositionRow]:
    steps = load_run(RESULTS / folder / STEPS)
    return {row.scheme: row for row in whole_rows(load_replay(RESULTS / folder), steps)}


@cache
def joined(folder: str) -> Joined:
    return gather([RESULTS / folder])


@cache
def measure_ranks(folder: str, title: str) -> Mapping[str, MeasureRow]:
    """Of the question whose title begins so, by measure."""
    question = next(one for one in questions_of(joined(folder)) if one.title.startswith(title))
    return {row.measure: row for row in ranking(question)}


@cache
def one_layer(folder: str, scheme: str, side: str) -> Mapping[int, AblationRow]:
    """What quantizing one layer costs, by layer."""
    _, record, arrays = joined(folder).sensitivity[0]
    return {row.layer: row for row in layer_rows(record, arrays) if (row.scheme, row.side) == (scheme, side)}


@cache
def additivity(folder: str, scheme: str, side: str) -> AdditivityRow:
    _, record, arrays = joined(folder).sensitivity[0]
    return next(row for row in additivity_rows(record, arrays) if (row.scheme, row.side) == (scheme, side))


@cache
def recommendation(folder: str) -> Recommendation:
    return load_recommendation(RESULTS / folder)


def verified(folder: str, scheme: str, model: str = "") -> dict[str, Any]:
    """A scheme on fresh windows while decoding, on the model whose name begins so."""
    found = [
        row
        for row in recommendation(folder).verified
        if row["scheme"] == scheme and row["protocol"] != "two-pass" and row["model"].startswith(model)
    ]
    assert len(found) == 1, f"{len(found)} rows of {scheme} in {folder}"
    return found[0]


@cache
def llama_cpp(model: str) -> dict[str, Any]:
    return json.loads((RESULTS / "llama-cpp" / f"{model}.json").read_text(encoding="utf-8"))
