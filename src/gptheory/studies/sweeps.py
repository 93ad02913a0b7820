r"""Grids of estimators and sample sizes: how many sequences does it take?

A sweep turns a list of cells (:class:`.SweepCell`) into a table with one row each. Cells are
trained in groups (:func:`.fit_ensemble`) that run wherever joblib sends them. Every finished cell
is a file of its own, named after its settings, so that a sweep which is killed, extended or spread
over machines never computes a cell twice. All randomness of a cell comes from its settings.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from joblib import Parallel, delayed
from torch import nn

from ..diffusion.exact import Score
from ..support.files import (
    DamagedFileError,
    digest,
    load_arrays,
    provenance,
    save_arrays,
    sealed,
    unsealed,
    write_atomically,
)
from ..support.progress import progress
from ..support.threads import one_thread
from ..training.config import TrainConfig, TrainingDivergedError
from ..training.ensemble import Member, fit_ensemble
from .cells import Cell, SweepCell
from .results import save_result
from .run import Run, with_weights

GROUP = 16  # networks trained together
# what the settings of a cell decide, so that it would happen again; memory that ran out, say, is no
# such thing
DECIDED = (ValueError, ArithmeticError, torch.linalg.LinAlgError)


def grid(of: type[SweepCell] = Cell, **axes: Any) -> list[SweepCell]:
    """All combinations: ``grid(n=[16, 64], lengthscale=[2, 8], seed=range(4))`` has 16 cells.

    Args:
        of: kind of cell.
        axes: field of the cell -> its value, or several in a list, a tuple or a
            range.

    Raises:
        ValueError: for an axis without values, or values that a cell refuses.
    """
    several = {k: v if isinstance(v, list | tuple | range) else [v] for k, v in axes.items()}
    for name, values in several.items():
        if not values:
            raise ValueError(f"the axis {name} of the grid is empty")
    return [of(**dict(zip(several, values, strict=True))) for values in product(*several.values())]


def sweep(
    cells: Iterable[SweepCell],
    folder: str | Path,
    n_jobs: int | None = None,
    show_progress: bool | None = None,
) -> pd.DataFrame:
    """Compute what is missing and return the whole table.

    Groups run through joblib: inside ``joblib.parallel_config(backend=...)`` they run on that
    backend, an existing Dask cluster for example, whose workers must see the folder. Training
    computes on one thread a process.

    Args:
        cells: the grid, see :func:`grid`; duplicates count once.
        folder: keeps a file for every finished cell.
        n_jobs: processes, as joblib counts them; by default what ``parallel_config`` says, else 1.
        show_progress: see :func:`.progress`; counts cells.

    Returns:
        One row a cell, in the order given: its fields, the numbers that it measures
        (its ``assess``), and ``error``, the reason why a cell has no numbers.

    Raises:
        ValueError: for an empty grid.
        OSError: if the folder cannot be written, before any work.
        Exception: what the settings of a cell do not decide, such as a lack of memory, ends the
            sweep; started again, it goes on where it was.

    Warns:
        UserWarning: for files that had to be computed again, and for cells that failed.
    """
    cells, folder = list(dict.fromkeys(cells)), Path(folder)
    if not cells:
        raise ValueError("the grid is empty: a sweep needs at least one cell")
    folder.mkdir(parents=True, exist_ok=True)
    tempfile.TemporaryFile(dir=folder).close()  # fails here and not after an hour of work
    missing = set(_missing(folder, cells))
    pending = [group for group in _groups(cells) if not missing.isdisjoint(group)]
    jobs = (delayed(_run_group)(group, folder) for group in pending)
    finished = Parallel(n_jobs=n_jobs, return_as="generator_unordered")(jobs)
    done = (cell for group in finished for cell in group)
    for _cell in progress(done, len(missing), "cells", show_progress):
        pass
    table = collect(cells, folder)
    failed = table["error"].dropna()
    if len(failed):
        first = failed.index[0]
        warnings.warn(
            f"{len(failed)} of {len(table)} cells failed; the first, {cells[first]}:"
            f" {failed[first]}",
            stacklevel=2,
        )
    return table


def collect(cells: Iterable[SweepCell], folder: str | Path, seconds: bool = False) -> pd.DataFrame:
    """The table of a sweep that is finished.

    Args:
        cells, folder: as in :func:`sweep`.
        seconds: whether to add the CPU seconds of each cell, which are never twice the same.

    Raises:
        FileNotFoundError: if a cell has not been computed.
    """
    rows = []
    for cell in dict.fromkeys(cells):
        record = _stored(Path(folder), cell)
        if record is None:
            raise FileNotFoundError(f"{folder} holds no result of {cell}; run the sweep first")
        row = {**asdict(cell), **record["numbers"], "error": record["error"]}
        rows.append(row | {"seconds": record["seconds"]} if seconds else row)
    table = pd.DataFrame(rows)
    return table.astype({"n": "Int64", "error": object})


@dataclass(frozen=True)
class SweepStudy:
    """Settings of :func:`sweep_study`.

    Args:
        of: kind of cell.
        parts: name -> axes of a grid, see :func:`grid`.
    """

    of: type[SweepCell]
    parts: Mapping[str, Mapping[str, Any]]

    def cells(self) -> dict[SweepCell, str]:
        """All cells in order, each with the name of the part that has it first."""
        cells: dict[SweepCell, str] = {}
        for part, axes in self.parts.items():
            for cell in grid(self.of, **axes):
                cells.setdefault(cell, part)
        return cells


def sweep_study(settings: SweepStudy, run: Run) -> Path:
    """A sweep as a stored result: one folder, one table.

    Runs on the CPU, on as many processes as ``joblib.parallel_config`` says; its seconds are those
    of all processes. Takes and returns what :func:`.figure1` does.
    """
    cells, folder = settings.cells(), run.folder / run.name
    sweep(cells, folder, show_progress=run.show)
    table = collect(cells, folder, seconds=True).astype({"n": float})
    table.insert(0, "part", list(cells.values()))
    seconds = float(table.pop("seconds").sum())
    numbers = {"sweep": {"cells": len(table), "failed": int(table["error"].notna().sum())}}
    record = {"format": settings.of.FORMAT, "parts": settings.parts}
    return save_result(
        run.folder, run.name, {}, record, numbers, {"cells": table}, provenance("cpu"), seconds
    )


def _missing(folder: Path, cells: Sequence[SweepCell]) -> list[SweepCell]:
    """Cells to be computed; warns of files that are there and cannot be used."""
    missing = [cell for cell in cells if _stored(folder, cell) is None]
    unusable = [cell.name for cell in missing if _file(folder, cell).exists()]
    if unusable:
        warnings.warn(
            f"{len(unusable)} files in {folder} are damaged or were written by another version,"
            f" {unusable[0]}.json among them; their cells are computed again",
            stacklevel=3,
        )
    return missing


def _groups(cells: Sequence[SweepCell]) -> list[tuple[SweepCell, ...]]:
    """Cells that run together: of one shape and one training, at most ``GROUP``, in grid order.

    They follow from the grid alone, not from what is missing.
    """
    shapes: dict[tuple, list[SweepCell]] = {}
    for cell in cells:
        shapes.setdefault((type(cell), cell.shape), []).append(cell)
    return [
        tuple(alike[first : first + GROUP])
        for alike in shapes.values()
        for first in range(0, len(alike), GROUP)
    ]


def _run_group(group: tuple[SweepCell, ...], folder: Path) -> list[SweepCell]:
    """Compute and store the missing cells of a group; returns them."""
    missing = [cell for cell in group if _stored(folder, cell) is None]
    if not missing:  # another sweep in the same folder was faster
        return []
    # weights outlive a kill until every cell has its file: no finished cell is trained again
    kind = group[0].FORMAT  # trained otherwise, weights are others
    path = folder / f"{digest([kind, *(cell.name for cell in group)])[:20]}.weights"
    with one_thread():  # groups fill the cores, and sums do not depend on the machine
        start = time.thread_time()
        scores = _scores(missing, path)
        share = (time.thread_time() - start) / len(missing)
        for cell, score in zip(missing, scores, strict=True):
            start = time.thread_time()
            numbers, error = _attempt(score, cell)
            seconds = share + time.thread_time() - start
            _store(folder, cell, numbers, error, seconds)
    path.unlink(missing_ok=True)
    return missing


def _scores(cells: list[SweepCell], path: Path) -> list[Score | Exception]:
    """What each cell's estimator made of its training set, or why it failed."""
    closed = [_guarded(cell.closed_form) for cell in cells]
    if closed[0] is not None:  # cells of one group are of one kind
        return closed
    made = [_guarded(cell.member) for cell in cells]
    members = {
        cell.name: member
        for cell, member in zip(cells, made, strict=True)
        if isinstance(member, Member)
    }
    trained = _trained(members, cells[0].training(), path) if members else {}
    return [trained.get(cell.name, error) for cell, error in zip(cells, made, strict=True)]


def _trained(
    members: dict[str, Member], config: TrainConfig, path: Path
) -> dict[str, nn.Module | Exception]:
    """Train, or read the weights that a killed run left behind."""
    with contextlib.suppress(FileNotFoundError, DamagedFileError):
        arrays, record = load_arrays(path)
        if members.keys() <= set(record["names"]):
            errors = {name: TrainingDivergedError(e) for name, e in record["errors"].items()}
            return {
                name: errors.get(name) or with_weights(member.model, arrays, f"{name}.")
                for name, member in members.items()
            }
    outcomes = dict(zip(members, fit_ensemble([*members.values()], config), strict=True))
    models = {name: m for name, m in outcomes.items() if isinstance(m, nn.Module)}
    arrays = {f"{name}.{k}": x for name, m in models.items() for k, x in m.state_dict().items()}
    errors = {name: str(error) for name, error in outcomes.items() if name not in models}
    save_arrays(path, arrays, {"names": [*members], "errors": errors})
    return outcomes


def _guarded(make: Callable[[], Any]) -> Any:
    """What it makes, or the error: a cell that always fails must not take the others down."""
    try:
        return make()
    except DECIDED as error:
        return error


def _attempt(score: Score | Exception, cell: SweepCell) -> tuple[dict[str, float], str | None]:
    outcome = score if isinstance(score, Exception) else _guarded(lambda: cell.assess(score))
    if isinstance(outcome, Exception):
        return {}, f"{type(outcome).__name__}: {outcome}"
    return outcome, None


def _file(folder: Path, cell: SweepCell) -> Path:
    return folder / f"{cell.name}.json"


def _store(
    folder: Path, cell: SweepCell, numbers: dict[str, float], error: str | None, seconds: float
) -> None:
    record = {
        "format": cell.FORMAT, "cell": asdict(cell), "numbers": numbers, "error": error,
        "seconds": round(seconds, 3), "provenance": provenance(),
    }  # fmt: skip
    write_atomically(_file(folder, cell), sealed(record))


def _stored(folder: Path, cell: SweepCell) -> dict[str, Any] | None:
    """The record of a cell, or None where there is none that can be used."""
    try:
        record = unsealed(_file(folder, cell))
    except (FileNotFoundError, DamagedFileError):
        return None
    return record if record["format"] == cell.FORMAT else None
