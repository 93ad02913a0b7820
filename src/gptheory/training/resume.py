"""Trainings that survive being killed: checkpoints, and going on from them."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from ..data.law import KnownLaw, Law
from ..data.masks import MaskLaw
from ..support.files import DamagedFileError, load_arrays, provenance, save_arrays
from ..support.progress import progress
from ..support.validation import require_count
from .config import TrainConfig, TrainingDivergedError, TrainResult
from .loop import Training

FORMAT = 2  # of checkpoints; 1 had no state of torch's own generators


def fit(
    model: nn.Module,
    data: Tensor | Law,
    config: TrainConfig,
    law: KnownLaw | None = None,
    checkpoint: str | Path | None = None,
    checkpoint_every: int = 200,
    show_progress: bool | None = None,
    masks: Tensor | MaskLaw | None = None,
) -> TrainResult:
    """Train a score network by denoising score matching.

    **With masks** it is an imputer that is trained, called as (v, t, observed): every sequence of a
    batch comes with a mask of its own, and the loss is that of the frames which it hides (Algorithm
    1 of Ye and Chen). The data are complete sequences.

    Data, diffusion steps and loss are computed in the dtype of the weights. The network obeys its
    caller: in ``with torch.autocast("cpu", torch.bfloat16): fit(...)`` its layers multiply in
    bfloat16, while weights, optimiser, averages, data and evaluations of the exact score keep their
    precision; likewise with ``torch.set_float32_matmul_precision``. (Float16 would need a scaler of
    the loss, which there is not.)

    **Randomness.** Everything is drawn from ``config.seed``. Modules that draw from torch's own
    generators, as dropout does, find them seeded by it, and torch's global state is the same
    after the run as before. Those generators belong to the process: runs in several threads take
    turns at each update. Draws made elsewhere (numpy, Python's ``random``) are neither seeded nor
    kept.

    **A compiled network** (``torch.compile``) is trained compiled; its checkpoints are those of the
    network itself, and the averaged network that is returned is not compiled.

    Args:
        model, data, config, law, masks: see :class:`.Training`. It trains where the model is and in
            the dtype of its weights.
        checkpoint: a file. If it exists, the run continues from it and ends with the same weights,
            bit for bit, as if it had never stopped (same machine, versions, threads, autocast and
            ``torch.compile``). On an accelerator the state of its generator is kept as well, but
            the same bits come out only where its kernels are deterministic
            (``torch.use_deterministic_algorithms``).
        checkpoint_every: steps from one checkpoint to the next; the end makes one in any case.
        show_progress: see :func:`.progress`.

    Returns:
        The averaged model and the history; ``model`` itself holds the weights without averaging.

    Raises:
        ValueError: for bad data or a model that does not fit it, masks for a model that takes none
            (or none for one that does), or a checkpoint of another run.
        NotPSDError: with masks, for a process too smooth to be conditioned, which evaluations ask.
        DamagedFileError: for a damaged checkpoint.
        TrainingDivergedError: when the loss is not finite; the last good checkpoint is kept.
    """
    require_count("checkpoint_every", checkpoint_every)
    training = Training(model, data, config, law, masks)
    saved = None
    if checkpoint is not None and Path(checkpoint).exists():
        load_checkpoint(checkpoint, training)
        saved = training.step
    try:
        for step in progress(training, len(training), "training", show_progress):
            if checkpoint is not None and (step % checkpoint_every == 0 or not len(training)):
                save_checkpoint(checkpoint, training)
                saved = step
    except TrainingDivergedError as error:
        kept = f"{checkpoint} keeps the weights of step {saved}" if saved else "nothing was saved"
        raise TrainingDivergedError(f"{error}; {kept}") from None
    return training.result()


def save_checkpoint(path: str | Path, training: Training) -> None:
    """Write all that a run needs to go on: weights, averages, optimiser, random state, history.

    Args:
        path: the file, replaced atomically.
        training: the run.

    Raises:
        TrainingDivergedError: if the run is no longer finite; the file stays as it was.
    """
    arrays, record = training.state()
    record = {"format": FORMAT, "identity": training.identity(), **record}
    save_arrays(path, arrays, record | {"provenance": provenance(training.device)})


# random streams of devices differ, so that a run cannot go on bit for bit on another one
DEVICE_REMEDY = (
    "; to go on from its weights, without its random state, load what load_arrays(path)[0] holds"
    " under 'average.' into a model and train that with another checkpoint"
)


def load_checkpoint(path: str | Path, training: Training) -> None:
    """Put a run where a checkpoint left it.

    Args:
        path: the file.
        training: a run of the same configuration, model and data.

    Raises:
        FileNotFoundError: if there is no such file.
        DamagedFileError: if it is damaged or no checkpoint.
        ValueError: if it belongs to another run; says what differs.
    """
    arrays, record = load_arrays(path)
    if "identity" not in record:
        raise DamagedFileError(f"{path} is not a checkpoint of a training run")
    if record.get("format") != FORMAT:
        raise ValueError(
            f"{path} was written by another version of gptheory (format {record.get('format', 1)},"
            f" here {FORMAT}) and cannot be continued: train again, or with that version"
        )
    here, there = training.identity(), record["identity"]
    for name in sorted(here.keys() | there.keys()):
        if here.get(name) != there.get(name):
            raise ValueError(
                f"{path} is the checkpoint of another run: its {name} is {there.get(name)!r}, here"
                f" it is {here.get(name)!r}; use another file or the same settings"
                + DEVICE_REMEDY
                * (name == "device")
            )
    training.restore(arrays, record)
