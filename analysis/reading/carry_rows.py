"""Rows of what carries from cell to cell; `table` says which of its tables one belongs to."""

from dataclasses import dataclass, field

from kvdelta.analysis.reading.rows import Row


@dataclass(frozen=True)
class OrderRow(Row):
    """One scheme in one cell. loss: nats a token with its 95 % t interval over windows, NaN of one window; rank: from 1, the least.
    refused: why it has no figures here. beaten_by: schemes of no more bits that lose less here, beyond the interval of the
    pair. front: no cell has one that beats it, and it has figures in all."""

    table: str = field(default="order", kw_only=True)
    cell: str
    scheme: str
    name: str
    bits: float | None
    loss: float
    loss_low: float
    loss_high: float
    rank: int | None
    refused: str
    beaten_by: tuple[str, ...]
    front: bool


@dataclass(frozen=True)
class AgreementRow(Row):
    """How two cells order the schemes that both have: Kendall's tau-b with a 95 % percentile interval of a bootstrap over windows
    (analysis.reading.draws). told: pairs of schemes that both cells tell apart beyond the interval of the pair; reversed: how
    many of them the other way round. paired: both have the same windows, which were drawn together."""

    table: str = field(default="agreement", kw_only=True)
    cell: str
    other: str
    schemes: int
    tau: float
    tau_low: float
    tau_high: float
    told: int
    reversed: int
    paired: bool


@dataclass(frozen=True)
class RegretRow(Row):
    """The scheme of at most so many measured bits in every cell whose worst loss over cells is least. regret: its loss less the
    least of the candidates in the same cell. Intervals: 95 %, of the largest of several means
    (analysis.reading.draws), for the scheme that was chosen. no_difference: candidates whose worst loss is not more beyond the
    interval of the difference (of draws of the windows) and the noise floor, the best first."""

    table: str = field(default="regret", kw_only=True)
    budget: float
    scheme: str
    bits: float
    candidates: int
    loss: float
    loss_low: float
    loss_high: float
    loss_cell: str
    regret: float
    regret_low: float
    regret_high: float
    regret_cell: str
    no_difference: tuple[str, ...]


@dataclass(frozen=True)
class FailRow(Row):
    """A scheme that fails in a cell: it has no figures there (why), or it loses more there than a scheme of no more bits (beaten_by)
    and less in another cell (elsewhere), both beyond the interval of the pair."""

    table: str = field(default="fails", kw_only=True)
    scheme: str
    cell: str
    why: str
    beaten_by: str | None = None
    elsewhere: str | None = None
