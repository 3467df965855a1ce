"""Does the order of schemes carry from cell to cell of a grid, and which scheme is safe where it does not?"""

from collections.abc import Sequence
from functools import cached_property

import numpy as np

from kvdelta.analysis.reading.carry_rows import AgreementRow, FailRow, OrderRow, RegretRow
from kvdelta.analysis.reading.draws import (
    drawn_means,
    interval_of,
    interval_of_largest,
    kendall,
    pairs_of,
    quantile,
    signs,
    told,
)
from kvdelta.analysis.reading.grids import Grid

SAME_BITS = 0.005  # bits that print alike are alike


class Carried:
    """What a grid says of its schemes. seed: of the draws."""

    def __init__(self, grid: Grid, seed: int = 0):
        self.grid = grid
        self.means = grid.means
        self.draws = drawn_means(grid, seed)
        self.told = [
            told(cell, losses, cell.floor(grid.by)) for cell, losses in zip(grid.cells, grid.losses, strict=True)
        ]
        self.whole = np.flatnonzero(np.isfinite(self.means).all(axis=0))  # schemes with figures in every cell

    @cached_property
    def order(self) -> list[OrderRow]:
        """By scheme, then by cell."""
        grid, rows = self.grid, []
        beaten = [self._beaten(c) for c in range(len(grid.cells))]
        known = np.flatnonzero(np.isfinite(self.means + grid.bits).all(axis=0))
        front = [s in known and not any(one[s] for one in beaten) for s in range(len(grid.names))]
        for s, label in enumerate(grid.labels):
            for c, cell in enumerate(grid.cells):
                losses, mean = grid.losses[c][s], float(self.means[c, s])
                half = np.nan
                if cell.has_intervals:
                    half = quantile(cell) * float(losses.std(ddof=1)) / np.sqrt(len(losses))
                rank = None if np.isnan(mean) else 1 + int((self.means[c] < mean).sum())
                bits = grid.bits[c, s]
                rows.append(
                    OrderRow(
                        cell=cell.name,
                        scheme=label,
                        name=grid.names[s],
                        bits=None if np.isnan(bits) else float(bits),
                        loss=mean,
                        loss_low=mean - half,
                        loss_high=mean + half,
                        rank=rank,
                        refused="" if rank else cell.why_not(grid.names[s]),
                        beaten_by=tuple(grid.labels[i] for i in beaten[c][s]),
                        front=front[s],
                    )
                )
        return rows

    def _beaten(self, c: int) -> list[list[int]]:
        """Of each scheme, those of no more bits that lose less in a cell, the one that loses least first."""
        bits, means = self.grid.bits[c], self.means[c]
        found = []
        for s in range(len(bits)):
            cheaper = bits <= bits[s] + SAME_BITS  # False of NaN
            found.append(sorted(map(int, np.flatnonzero((self.told[c][s] > 0) & cheaper)), key=lambda i: means[i]))
        return found

    @cached_property
    def agreement(self) -> list[AgreementRow]:
        """Each two cells, those that agree least first."""
        rows = []
        for a, b, paired in pairs_of(self.grid.cells):
            both = np.flatnonzero(np.isfinite(self.means[[a, b]]).all(axis=0))
            low = high = np.nan
            if self.grid.cells[a].has_intervals and self.grid.cells[b].has_intervals:
                drawn = kendall(signs(self.draws[a][:, both]), signs(self.draws[b][:, both]))
                low, high = interval_of(np.asarray(drawn))
            upper = np.triu_indices(len(both), 1)
            mine, theirs = (self.told[c][np.ix_(both, both)][upper] for c in (a, b))
            rows.append(
                AgreementRow(
                    cell=self.grid.cells[a].name,
                    other=self.grid.cells[b].name,
                    schemes=len(both),
                    tau=float(kendall(signs(self.means[a, both]), signs(self.means[b, both]))),
                    tau_low=low,
                    tau_high=high,
                    told=int((mine * theirs != 0).sum()),
                    reversed=int((mine * theirs < 0).sum()),
                    paired=paired,
                )
            )
        return sorted(rows, key=lambda row: row.tau if row.tau == row.tau else 2.0)

    def regret(self, budgets: Sequence[float] = ()) -> list[RegretRow]:
        """For each budget of measured bits; without any, for each at which another scheme is chosen, the smallest first. A
        budget that no scheme keeps has no row."""
        most = self.grid.bits.max(axis=0)  # NaN where some cell's is unknown
        rows = [
            self._regret(budget, most)
            for budget in budgets or sorted({float(most[s]) for s in self.whole if most[s] > 0})
        ]
        found = [row for row in rows if row is not None]
        return found if budgets else [row for i, row in enumerate(found) if not i or row.scheme != found[i - 1].scheme]

    def _regret(self, budget: float, most: np.ndarray) -> RegretRow | None:
        within = np.array([s for s in self.whole if most[s] <= budget + SAME_BITS], dtype=int)
        if not len(within):
            return None
        cells = self.grid.cells
        means, drawn = self.means[:, within], np.stack(self.draws)[:, :, within]  # [cells, (draws,) schemes]
        worst, drawn_worst = means.max(axis=0), drawn.max(axis=0)
        chosen = int(worst.argmin())
        regrets = means[:, chosen] - means.min(axis=1)
        at_loss, at_regret = int(means[:, chosen].argmax()), int(regrets.argmax())
        losses = [one[within] for one in self.grid.losses]
        loss_low, loss_high = interval_of_largest(cells, [one[[chosen]] for one in losses])
        more = [one[chosen] - np.delete(one, chosen, axis=0) for one in losses]
        regret_low, regret_high = interval_of_largest(cells, more, least=0.0)
        alike = [
            (worst[s], self.grid.labels[within[s]])
            for s in range(len(within))
            if s != chosen and not self._beyond(worst[s] - worst[chosen], drawn_worst[:, s] - drawn_worst[:, chosen])
        ]
        return RegretRow(
            budget=budget,
            scheme=self.grid.labels[within[chosen]],
            bits=float(most[within[chosen]]),
            candidates=len(within),
            loss=float(worst[chosen]),
            loss_low=loss_low,
            loss_high=loss_high,
            loss_cell=cells[at_loss].name,
            regret=float(regrets[at_regret]),
            regret_low=regret_low,
            regret_high=regret_high,
            regret_cell=cells[at_regret].name,
            no_difference=tuple(label for _, label in sorted(alike)),
        )

    def _beyond(self, more: float, drawn: np.ndarray) -> bool:
        """Whether more is lost, and not by chance or within the noise floor; False where there is no interval."""
        return bool(more > self.grid.floor and interval_of(drawn)[0] > 0)

    @cached_property
    def fails(self) -> list[FailRow]:
        """Those without figures first; of a scheme that is overtaken in a cell the one that loses least of those that overtake it."""
        cells, labels = self.grid.cells, self.grid.labels
        rows = [FailRow(row.scheme, row.cell, row.refused) for row in self.order if row.refused]
        beaten = [self._beaten(c) for c in range(len(cells))]
        for s, label in enumerate(labels):
            for c, cell in enumerate(cells):
                for other in beaten[c][s]:
                    better = [d for d in range(len(cells)) if self.told[d][s, other] < 0]
                    if better:
                        rows.append(
                            FailRow(
                                label,
                                cell.name,
                                self._overtaken(s, other, c, better[0]),
                                labels[other],
                                cells[better[0]].name,
                            )
                        )
                        break
        return rows

    def _overtaken(self, s: int, other: int, c: int, d: int) -> str:
        bits, means = self.grid.bits[c], self.means
        return (
            f"loses {means[c, s]:.4f} at {bits[s]:.2f} bits where {self.grid.labels[other]} loses {means[c, other]:.4f} at "
            f"{bits[other]:.2f}, and in {self.grid.cells[d].name} {means[d, s]:.4f} against {means[d, other]:.4f}"
        )
