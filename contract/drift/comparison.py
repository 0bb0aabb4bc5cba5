"""How far apart two sketches are: the population stability index (PSI) of each column, and whether that can be chance.

PSI is the sum over the cells of (p - q) · ln(p / q), where p and q are the shares of the served and of the reference's rows.
Of n and m rows of one distribution it is not 0 but about (cells - 1) · (1/n + 1/m), and divided by (1/n + 1/m) it is spread as
chi-squared: so that much is taken off, and a column has drifted only when its PSI is at least DRIFTED and beyond what chance
gives in one of a thousand looks at all columns. Cells that few rows of the reference fall into are taken together, with missing
and new values and those out of range, unless they are frequent in the reference.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
from msgspec import Struct

from forebay.contract.drift.sketch import ABOVE, BELOW, MISSING, Column, Counts, Reference, Side

DRIFTED = 0.2  # the PSI from which a column counts as drifted
LEAST_ROWS = 100  # below which nothing is said
CHANCE = 0.001  # of a false alarm in a look at all columns of a version
_LEAST_SHARE, _LEAST_EXPECTED = 0.01, 5  # of a cell that stands alone


class ColumnDrift(Struct, frozen=True):
    """A column's drift. `psi` is corrected for the number of rows, None where there are too few of them. `missing`,
    `out_of_range` and `new` are shares of the served rows; `missing_before` is that of the reference. `out_of_range` is of
    numbers, beyond the reference's least and greatest; `new` of texts that the reference did not have, None where it had too
    many to tell. It is `certain` where chance does not give such a PSI, and `drifted` where it is also large enough.
    """

    name: str
    side: Side
    rows: int
    psi: float | None
    certain: bool
    drifted: bool
    missing: float
    missing_before: float
    out_of_range: float | None = None
    new: float | None = None


class Drift(Struct, frozen=True):
    """What a version has served in the last `hours` against its reference: its columns, the farthest first.

    `rows` are those that were looked at, of all or a sample. Below LEAST_ROWS of them no column has a PSI.
    """

    model: str
    hours: int
    rows: int
    source: str
    columns: tuple[ColumnDrift, ...]
    unwatched: tuple[str, ...] = ()

    @property
    def worst(self) -> ColumnDrift | None:
        """The column with the largest PSI among those that are certain."""
        return max((c for c in self.columns if c.certain and c.psi is not None), key=lambda c: c.psi or 0, default=None)

    @property
    def drifted(self) -> list[ColumnDrift]:
        return [column for column in self.columns if column.drifted]


def compare(model: str, hours: int, reference: Reference, rows: int, served: Counts) -> Drift:
    """The drift of `rows` rows whose counts are `served`, a row for each column of the reference."""
    many = len(reference.columns)
    columns = (_column(column, counts, many) for column, counts in zip(reference.columns, served, strict=True))
    ordered = sorted(columns, key=lambda column: -(column.psi or 0.0))
    return Drift(model, hours, rows, reference.source, tuple(ordered), reference.unwatched)


def psi(before: Sequence[int], now: Counts, unseen: int, looks: int) -> tuple[float, bool]:
    """The corrected PSI of two columns of counts, and whether it is more than chance gives in `looks` columns."""
    q, p = np.asarray(before, np.float64), np.asarray(now, np.float64)
    m, n = q.sum(), p.sum()
    alone = q >= m * max(_LEAST_SHARE, _LEAST_EXPECTED / n)
    q, p = (np.append(side[alone] + 0.5, side[~alone].sum() + 1) for side in (q, p))  # no share is 0
    q[-1] += unseen
    q, p = q / q.sum(), p / p.sum()
    found, unit, freedom = float(((p - q) * np.log(p / q)).sum()), 1 / n + 1 / m, len(q) - 1
    certain = freedom > 0 and bool(found / unit > _chi_squared(freedom, CHANCE / looks))
    return max(0.0, found - freedom * float(unit)), certain


def _column(column: Column, counts: Counts, looks: int) -> ColumnDrift:
    rows, before = int(counts.sum()), sum(column.counts)
    enough = rows >= LEAST_ROWS
    far, certain = psi(column.counts, counts, column.unseen, looks) if enough else (None, False)
    beyond = int(counts[BELOW] + counts[ABOVE]) / max(1, rows)
    new = beyond if column.known else None
    return ColumnDrift(
        column.name, column.side, rows, far, certain, certain and far is not None and far >= DRIFTED,
        int(counts[MISSING]) / max(1, rows), column.counts[MISSING] / max(1, before),
        beyond if column.kind == "number" else None, new if column.kind == "category" else None,
    )  # fmt: skip


def _chi_squared(freedom: int, chance: float) -> float:
    """What a chi-squared variable exceeds with this chance, after Wilson and Hilferty."""
    spread = 2 / (9 * freedom)
    return freedom * (1 - spread + NormalDist().inv_cdf(1 - chance) * math.sqrt(spread)) ** 3
