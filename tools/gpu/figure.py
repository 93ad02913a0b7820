"""Last Figure 1 at paper scale, as far as time goes; it goes on where it was."""

from __future__ import annotations

from unittest import mock

from gptheory.studies import fig1, reproduce
from gptheory.support.files import DamagedFileError, load_arrays
from gptheory.training import TrainConfig

from .part import Numbers, Part, Session

TINY = fig1.Figure1(
    {"seq_len": 8, "dim": 2, "lengthscale": 2.0},
    TrainConfig(steps=4, batch_size=4, log_every=2, evaluate_n=8, evaluate_at=(0.1,)),
    samples=8, picture=4, solver_steps=3, monte_carlo=16,
)  # fmt: skip


def figure_1(session: Session, numbers: Numbers) -> None:
    """Two networks at the size of the paper, what they generate, and how good that is."""
    settings = {"paper": TINY} if session.rehearse else fig1.FIGURE1
    experiment = reproduce.Experiment("Figure 1", fig1.figure1, settings)
    folder = session.out / "figure"
    try:
        with mock.patch.dict(reproduce.EXPERIMENTS, fig1=experiment):
            result = reproduce.reproduce("fig1", "paper", str(session.device), folder, False)
        numbers |= {"seconds": result.record["seconds"], **result.numbers}
    finally:  # also when the time is up
        numbers |= _progress(session)


def _progress(session: Session) -> Numbers:
    found = {}
    for path in sorted((session.out / "figure/work").glob("*.checkpoint")):
        try:
            record = load_arrays(path)[1]
        except DamagedFileError as error:
            found[path.stem] = str(error)
            continue
        seconds = record["seconds"]
        rate = record["step"] / seconds if seconds else 0.0
        found[path.stem] = {"step": record["step"], "steps a second": round(rate, 1)}
    return found


PARTS = (Part("Figure 1 at paper scale", figure_1, 3600),)
