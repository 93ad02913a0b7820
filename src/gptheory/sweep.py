r"""Grids of estimators and sample sizes: how many sequences does it take?

A sweep turns a list of :class:`Cell` into a table with one row each. Cells are trained in groups
(:mod:`gptheory.ensemble`) that run wherever joblib sends them. Every finished cell is a file of its
own, named after its settings, so that a sweep which is killed, extended or spread over machines
never computes a cell twice. All randomness of a cell comes from its settings.
"""

from __future__ import annotations

import json
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from joblib import Parallel, delayed
from torch import Tensor, nn

from .dit import DiT
from .ensemble import Member, fit_ensemble
from .metrics import (
    lag_correlations,
    path_kl,
    relative_error,
    sampling_floor,
    score_error,
    temporal_covariance,
)
from .process import GaussianProcess, decaying_process
from .progress import progress
from .sample import sample
from .score import ExactScore, Score
from .store import DamagedFileError, digest, load_arrays, provenance, save_arrays, write_atomically
from .structured import LearnedCovariance, WienerScore, kronecker_mle, toeplitz_moments
from .train import TrainConfig, TrainingDivergedError
from .validation import require_count, require_positive

FORMAT = "sweep-1"  # changes whenever a cell of the same settings would be measured otherwise
GROUP = 16  # networks trained together
HEAD_DIM = 16
SCORE_STEPS = (0.01, 0.1, 1.0)
SCORE_N, PATH_N, GENERATED, SOLVER_STEPS = 512, 1024, 512, 20

# estimator -> what it makes of (cell, generator of weights), or of a training set
TRAINED: dict[str, Callable[[Cell, torch.Generator], nn.Module]] = {
    "dit": lambda cell, generator: DiT(
        cell.dim, cell.seq_len, cell.hidden, max(1, cell.hidden // HEAD_DIM), cell.depth,
        fused=False, generator=generator,
    ),
    "unrolled": lambda cell, generator: LearnedCovariance(
        cell.dim, cell.seq_len, cell.depth, stationary=False, generator=generator
    ),
    "unrolled-stationary": lambda cell, generator: LearnedCovariance(
        cell.dim, cell.seq_len, cell.depth, stationary=True, generator=generator
    ),
}  # fmt: skip
CLOSED: dict[str, Callable[[Tensor], Score]] = {
    "wiener": WienerScore,
    "kronecker": lambda x: ExactScore(kronecker_mle(x)),
    "stationary": lambda x: ExactScore(toeplitz_moments(x)),
}


@dataclass(frozen=True)
class Cell:
    r"""One estimate of one law from one training set.

    Args:
        estimator: ``"dit"``, ``"unrolled"`` or ``"unrolled-stationary"`` (trained, see
            :class:`gptheory.structured.LearnedCovariance`); ``"wiener"``, ``"kronecker"`` or
            ``"stationary"`` (closed form, see :mod:`gptheory.structured`).
        n: training sequences; None for fresh ones in every step, which only training can use.
        exponent, lengthscale: ν and ℓ of Γ.
        correlation: ρ of :math:`\Sigma_{ij} = \rho^{|i-j|}`.
        seq_len, dim: N and d.
        steps, batch_size, learning_rate: of the training.
        hidden, depth: width and blocks of the DiT; ``depth`` iterations of the unrolled estimators.
        seed: of training set, weights, batches and noise. Cells that differ in n only start from
            the same weights.

    Raises:
        ValueError: for an unknown estimator, n < 1, or no n where it is needed.
    """

    estimator: str = "dit"
    n: int | None = None
    exponent: float = 1.0
    lengthscale: float = 8.0
    correlation: float = 0.5
    seq_len: int = 16
    dim: int = 2
    steps: int = 800
    batch_size: int = 16
    learning_rate: float = 6e-3
    hidden: int = 32
    depth: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        known = (*TRAINED, *CLOSED)
        if self.estimator not in known:
            raise ValueError(f"estimator must be one of {known}, got {self.estimator!r}")
        if self.n is not None:
            require_count("n", self.n)
        elif self.estimator in CLOSED:
            raise ValueError(f"the estimator {self.estimator!r} needs n, got None")
        for name in ("seq_len", "dim", "steps", "batch_size", "hidden", "depth"):
            require_count(name, getattr(self, name))
        for name in ("exponent", "lengthscale", "learning_rate"):
            require_positive(name, getattr(self, name))

    @property
    def name(self) -> str:
        """Of its file: a digest of its settings."""
        return digest(asdict(self))[:20]

    def process(self) -> GaussianProcess:
        """The law of the sequences."""
        return decaying_process(
            self.seq_len, self.dim, self.lengthscale, self.exponent, self.correlation
        )

    def training_set(self) -> Tensor | GaussianProcess:
        """n sequences (n, N, d), or the law itself for fresh ones."""
        law = self.process()
        if self.n is None:
            return law
        names = ("exponent", "lengthscale", "correlation", "seq_len", "dim", "n", "seed")
        return law.sample(self.n, self._generator("data", *names))

    def member(self) -> Member:
        """The untrained network, its data and the seed of its noise."""
        names = ("estimator", "seq_len", "dim", "hidden", "depth", "seed")
        model = TRAINED[self.estimator](self, self._generator("weights", *names))
        return Member(model, self.training_set(), self._seed("noise", "seed"))

    def training(self) -> TrainConfig:
        """How it is trained."""
        return TrainConfig(
            steps=self.steps, batch_size=self.batch_size, learning_rate=self.learning_rate
        )

    def _seed(self, purpose: str, *names: str) -> int:
        return int(digest(purpose, [getattr(self, name) for name in names])[:15], 16)

    def _generator(self, purpose: str, *names: str) -> torch.Generator:
        return torch.Generator().manual_seed(self._seed(purpose, *names))


FIELDS = tuple(field.name for field in fields(Cell))
OWN = {"n", "exponent", "lengthscale", "correlation", "seed"}  # may differ within a group


def grid(**axes: Any) -> list[Cell]:
    """All combinations: ``grid(n=[16, 64], lengthscale=[2, 8], seed=range(4))`` has 16 cells.

    Args:
        axes: field of :class:`Cell` -> its value, or several in a list, tuple or range.

    Raises:
        ValueError: for an axis without values, or values that :class:`Cell` refuses.
    """
    several = {k: v if isinstance(v, list | tuple | range) else [v] for k, v in axes.items()}
    for name, values in several.items():
        if not values:
            raise ValueError(f"the axis {name} of the grid is empty")
    return [
        Cell(**dict(zip(several, values, strict=True))) for values in product(*several.values())
    ]


def sweep(
    cells: Iterable[Cell],
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
        show_progress: see :func:`gptheory.progress.progress`; counts cells.

    Returns:
        One row a cell, in the order given: its fields, the columns of :func:`assess`, and
        ``error``, the reason why a cell has no numbers.

    Raises:
        ValueError: for an empty grid.
        OSError: if the folder cannot be written, before any work.

    Warns:
        UserWarning: for files that had to be computed again, and for cells that failed.
    """
    cells, folder = list(dict.fromkeys(cells)), Path(folder)
    if not cells:
        raise ValueError("the grid is empty: a sweep needs at least one cell")
    folder.mkdir(parents=True, exist_ok=True)
    tempfile.TemporaryFile(dir=folder).close()  # fails here and not after an hour of work
    _report_unusable(folder, cells)
    missing = {cell for cell in cells if _stored(folder, cell) is None}
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


def collect(cells: Iterable[Cell], folder: str | Path, seconds: bool = False) -> pd.DataFrame:
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


def assess(score: Score, cell: Cell) -> dict[str, float]:
    """How far a score is from the exact one of a cell's law, on noise that all cells share.

    Args:
        score: called as (v, t).
        cell: names law and training set.

    Returns:
        - ``score_error_T``: relative, at diffusion steps T;
        - ``path_kl``: per coordinate;
        - ``coupled_ode``: relative distance of sequences generated from the same noise;
        - ``covariance``, ``lags``: relative errors of the temporal covariance of the generated
          sequences, and of its averages along diagonals;
        - ``covariance_floor``: what as many true sequences are expected to have;
        - ``covariance_coupled``: difference from the covariance of what the exact score makes of
          the same noise, relative to the truth: nearly free of sampling noise;
        - ``data_covariance``: relative error of the training set's own temporal covariance;
        - ``nearest``: mean distance of a generated sequence to the nearest one of the training set,
          divided by that to as many sequences held out.
    """
    law = cell.process()
    exact, truth = ExactScore(law), law.gram()
    draws = (torch.Generator().manual_seed(seed) for seed in range(201, 300))
    numbers = {
        f"score_error_{t:g}": score_error(score, law, t, SCORE_N, next(draws)) for t in SCORE_STEPS
    }
    numbers["path_kl"] = path_kl(score, law, n=PATH_N, generator=next(draws))
    generated, reference = (
        sample(
            each, GENERATED, cell.seq_len, cell.dim, steps=SOLVER_STEPS,
            generator=torch.Generator().manual_seed(301), show_progress=False,
        )
        for each in (score, exact)
    )  # fmt: skip
    numbers["coupled_ode"] = relative_error(generated, reference)
    own, theirs = (temporal_covariance(x, law.mean).double() for x in (generated, reference))
    numbers["covariance"] = relative_error(own, truth)
    numbers["covariance_floor"] = sampling_floor(law, GENERATED)
    numbers["covariance_coupled"] = ((own - theirs).norm() / truth.norm()).item()
    numbers["lags"] = relative_error(lag_correlations(own), lag_correlations(truth))
    if cell.n is not None:
        x = cell.training_set()
        held_out = law.sample(cell.n, cell._generator("held out", "n", "seed"))
        near, far = (
            torch.cdist(generated.flatten(1), each.flatten(1)).amin(dim=1).mean()
            for each in (x, held_out)
        )
        numbers["data_covariance"] = relative_error(temporal_covariance(x, law.mean), truth)
        numbers["nearest"] = (near / far).item()
    return numbers


def _groups(cells: Sequence[Cell]) -> list[tuple[Cell, ...]]:
    """Cells that run together: of one shape and one training, at most ``GROUP``, in grid order.

    They follow from the grid alone, not from what is missing.
    """
    shapes: dict[tuple, list[Cell]] = {}
    for cell in cells:
        shape = tuple(getattr(cell, name) for name in FIELDS if name not in OWN)
        shapes.setdefault(shape, []).append(cell)
    return [
        tuple(alike[first : first + GROUP])
        for alike in shapes.values()
        for first in range(0, len(alike), GROUP)
    ]


def _run_group(group: tuple[Cell, ...], folder: Path) -> list[Cell]:
    """Compute and store the missing cells of a group; returns them."""
    missing = [cell for cell in group if _stored(folder, cell) is None]
    # weights outlive a kill until every cell has its file: no finished cell is trained again
    path = folder / f"{digest([cell.name for cell in group])[:20]}.weights"
    with _one_thread():
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


def _scores(cells: list[Cell], path: Path) -> list[Score | Exception]:
    """What each cell's estimator made of its training set, or why it failed."""
    if cells[0].estimator in CLOSED:
        return [_guarded(lambda c=cell: CLOSED[c.estimator](c.training_set())) for cell in cells]
    members = [_guarded(cell.member) for cell in cells]
    sound = [k for k, member in enumerate(members) if isinstance(member, Member)]
    names = [cells[k].name for k in sound]
    if not sound:
        return members
    trained = _remembered([members[k] for k in sound], names, cells[0].training(), path)
    for k, outcome in zip(sound, trained, strict=True):
        members[k] = outcome
    return members


def _remembered(
    members: list[Member], names: list[str], config: TrainConfig, path: Path
) -> list[nn.Module | Exception]:
    """Train, or read the weights that a killed run left behind."""
    try:
        arrays, record = load_arrays(path)
    except (FileNotFoundError, DamagedFileError):
        record = {}
    if not set(names) <= set(record.get("names", [])):
        outcomes = fit_ensemble(members, config)
        models = {n: m for n, m in zip(names, outcomes, strict=True) if isinstance(m, nn.Module)}
        arrays = {f"{n}.{k}": x for n, m in models.items() for k, x in m.state_dict().items()}
        errors = {n: str(e) for n, e in zip(names, outcomes, strict=True) if n not in models}
        record = {"names": names, "errors": errors}
        save_arrays(path, arrays, record)
    return [
        _restored(member.model, name, arrays, record["errors"])
        for member, name in zip(members, names, strict=True)
    ]


def _restored(
    model: nn.Module, name: str, arrays: Mapping[str, Tensor], errors: Mapping[str, str]
) -> nn.Module | Exception:
    if name in errors:
        return TrainingDivergedError(errors[name])
    own = {k.removeprefix(f"{name}."): x for k, x in arrays.items() if k.startswith(f"{name}.")}
    model.load_state_dict(own)
    return model.eval().requires_grad_(False)


def _guarded(make: Callable[[], Any]) -> Any:
    """What it makes, or the error: one cell that fails must not take the others down."""
    try:
        return make()
    except Exception as error:
        return error


def _attempt(score: Score | Exception, cell: Cell) -> tuple[dict[str, float], str | None]:
    outcome = score if isinstance(score, Exception) else _guarded(lambda: assess(score, cell))
    if isinstance(outcome, Exception):
        return {}, f"{type(outcome).__name__}: {outcome}"
    return outcome, None


def _file(folder: Path, cell: Cell) -> Path:
    return folder / f"{cell.name}.json"


def _store(
    folder: Path, cell: Cell, numbers: dict[str, float], error: str | None, seconds: float
) -> None:
    record = {
        "format": FORMAT, "cell": asdict(cell), "numbers": numbers, "error": error,
        "seconds": round(seconds, 3), "provenance": provenance(),
    }  # fmt: skip
    record["digest"] = digest(record)
    write_atomically(_file(folder, cell), (json.dumps(record) + "\n").encode())


def _stored(folder: Path, cell: Cell) -> dict[str, Any] | None:
    """The record of a cell, or None where there is none that can be used."""
    try:
        record = json.loads(_file(folder, cell).read_bytes())
        claimed = record.pop("digest")
    except (FileNotFoundError, ValueError, KeyError, AttributeError, TypeError):
        return None
    sound = claimed == digest(record) and record["format"] == FORMAT
    return record if sound else None


def _report_unusable(folder: Path, cells: Sequence[Cell]) -> None:
    """Warn of files that are there and cannot be used."""
    unusable = [
        path.name
        for path, cell in ((_file(folder, cell), cell) for cell in cells)
        if path.exists() and _stored(folder, cell) is None
    ]
    if unusable:
        warnings.warn(
            f"{len(unusable)} files in {folder} are damaged or were written by another version,"
            f" {unusable[0]} among them; their cells are computed again",
            stacklevel=3,
        )


@contextmanager
def _one_thread() -> Iterator[None]:
    """Compute on one thread: groups fill the cores, and sums do not depend on the machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
