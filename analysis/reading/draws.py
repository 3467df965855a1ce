"""How far mean losses may be off: t intervals, and draws of the windows, joint where cells have the same ones."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64, Int8
from scipy import special

from kvdelta.analysis.reading.cells import Cell
from kvdelta.analysis.reading.grids import Grid

DRAWS = 2000
NORMAL = float(special.ndtri(0.975))


def drawn_means(grid: Grid, seed: int = 0, draws: int = DRAWS) -> list[Float64[np.ndarray, "draws schemes"]]:
    """The mean loss of every scheme, by cell, as it might have come out: a bootstrap over windows.

    Cells with the same scored tokens draw the same windows, others independently. A percentile bootstrap of W windows is
    too narrow (it knows neither the W/(W − 1) of a variance nor Student's t), so each draw's distance from the mean is
    stretched by √(W/(W − 1)) · t/z: the interval of one mean is then about its t interval, that of all looks together where a
    run had several. NaN where a cell has one window, or windows that share scored tokens.
    """
    rng = np.random.default_rng(seed)
    counts: dict[tuple, np.ndarray] = {}
    found = []
    for cell, losses in zip(grid.cells, grid.losses, strict=True):
        windows = losses.shape[1]
        if not cell.has_intervals:
            found.append(np.full((draws, len(losses)), np.nan))
            continue
        if cell.scored not in counts:
            counts[cell.scored] = rng.multinomial(windows, np.full(windows, 1 / windows), size=draws) / windows
        mean = losses.mean(axis=1)
        stretch = np.sqrt(windows / (windows - 1)) * quantile(cell) / NORMAL
        found.append(mean + stretch * (counts[cell.scored] @ losses.T - mean))
    return found


def quantile(cell: Cell, parts: int = 1) -> float:
    """Of Student's t, for a 95 % interval of all looks together; parts: of how many ends that hold together (Bonferroni)."""
    return float(special.stdtrit(len(cell.run.windows) - 1, 1 - 0.025 / cell.looks / parts))


def interval_of_largest(
    cells: Sequence[Cell], values: Sequence[Float64[np.ndarray, "_means _windows"]], least: float = -np.inf
) -> tuple[float, float]:
    """95 % interval of the largest of several true means: of each row of `values`, which has one a cell; at least `least`.

    The high end is the largest high end of their t intervals, the low end the largest low end of intervals that hold together.
    A percentile interval of the largest of drawn means is no such thing: a largest is biased upward, twice where it is drawn
    again, and of 3 equal cells it covered 70 to 90 % (simulated, 32 to 4 windows), this one 97 % or more. NaN where a cell has
    no intervals.
    """
    parts = sum(len(one) for one in values)
    low = high = least
    for cell, one in zip(cells, values, strict=True):
        if not cell.has_intervals:
            return np.nan, np.nan
        if len(one):
            mean, error = one.mean(axis=1), one.std(axis=1, ddof=1) / np.sqrt(one.shape[1])
            low = max(low, float((mean - quantile(cell, parts) * error).max()))
            high = max(high, float((mean + quantile(cell) * error).max()))
    return low, high


def interval_of(draws: np.ndarray) -> tuple[float, float]:
    """The middle 95 % of the draws, along the first axis; NaN where any is."""
    if np.isnan(draws).any():
        return np.nan, np.nan
    low, high = np.percentile(draws, [2.5, 97.5])
    return float(low), float(high)


def told(
    cell: Cell, losses: Float64[np.ndarray, "schemes windows"], floor: float = 0.0
) -> Int8[np.ndarray, "schemes schemes"]:
    """[i, j] is 1 where scheme i loses more than j by more than `floor` and the half width of the pair's 95 % t interval over windows,
    −1 where less, else 0."""
    order = np.zeros((len(losses), len(losses)), dtype=np.int8)
    if not cell.has_intervals:
        return order
    root, t = np.sqrt(losses.shape[1]), quantile(cell)
    for i, mine in enumerate(losses):
        apart = mine - losses
        mean, least = apart.mean(axis=1), np.maximum(t * apart.std(axis=1, ddof=1) / root, floor)
        order[i] = (mean > least).astype(np.int8) - (mean < -least).astype(np.int8)  # False of NaN
    return order


def signs(means: Float64[np.ndarray, "*draws schemes"]) -> Int8[np.ndarray, "*draws pairs"]:
    """Of each two schemes, which of them loses more: 1, 0 or −1."""
    first, second = np.triu_indices(means.shape[-1], 1)
    return np.sign(means[..., first] - means[..., second]).astype(np.int8)


def kendall(x: Int8[np.ndarray, "*draws pairs"], y: Int8[np.ndarray, "*draws pairs"]) -> np.ndarray | np.floating:
    """Kendall's tau-b (1945) from `signs`, for every draw at once: Σ x·y / √(Σ x² · Σ y²); NaN where an order is all ties."""
    x, y = x.astype(np.float32), y.astype(np.float32)
    with np.errstate(invalid="ignore"):
        return (x * y).sum(axis=-1) / np.sqrt((x * x).sum(axis=-1) * (y * y).sum(axis=-1))


def pairs_of(cells: Sequence[Cell]) -> list[tuple[int, int, bool]]:
    """Each two cells, and whether they have the same windows."""
    return [(a, b, cells[a].scored == cells[b].scored) for a in range(len(cells)) for b in range(a + 1, len(cells))]
