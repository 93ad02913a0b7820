"""Then what is fast: training steps, ensembles, sampling, attention, each beside a named peer."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.training import TextbookBlock, disturbed
from gptheory.attention import poly_attention, uniform_inputs
from gptheory.data import GaussianProcess, decaying_process
from gptheory.diffusion import ExactScore, alpha, sample, sigma
from gptheory.diffusion.schedule import levels
from gptheory.measures import MemoryMeter
from gptheory.networks import DiT
from gptheory.training import TrainConfig, fit_ensemble
from gptheory.training.ensemble import Member
from gptheory.training.loop import Training
from gptheory.training.objective import matching_error

from .correctness import products
from .part import Numbers, Part, Session, attempt, milliseconds, synchronise

SEQ_LEN, DIM = 128, 8  # of benchmarks.training.disturbed
COMPILING = 90.0  # seconds that torch.compile may take, each time
PRECISIONS = ("float32", "TF32", "bfloat16")


# ---- a training step ----------------------------------------------------------------------------


class Step:
    """One update of a network from sequences and noise that are there: all that can be captured.

    The optimiser keeps its rate and its count on the device. What is drawn anew each time is left
    out, so that both networks and every way to run them do the same.
    """

    def __init__(self, network: nn.Module, call: nn.Module, batch: int, precision: str) -> None:
        weights = list(network.parameters())
        device = weights[0].device
        self.call, self.weights, self.precision = call, weights, precision
        self.means = [weight.detach().clone() for weight in weights]
        rate = torch.full((), 1e-9, device=device)
        self.optimiser = torch.optim.AdamW(weights, lr=rate, fused=True, capturable=True)
        x, self.noise = torch.randn(2, batch, SEQ_LEN, DIM, device=device)
        self.t = torch.linspace(0.01, 5.0, batch, dtype=torch.float64).to(device)
        signal, noise = levels(self.t, x)
        self.v = signal * x + noise * self.noise

    def __call__(self) -> Tensor:
        """The loss."""
        with self._cast():
            score = self.call(self.v, self.t)
        loss = matching_error(score.float(), self.noise, self.t, "velocity").square().mean()
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.weights, 1.0)
        self.optimiser.step()
        with torch.no_grad():
            torch._foreach_lerp_(self.means, self.weights, 0.01)
        return loss.detach()

    def _cast(self) -> contextlib.AbstractContextManager:
        if self.precision != "bfloat16":
            return contextlib.nullcontext()
        # what is cached in one replay of a graph would be freed in the next
        kind = self.v.device.type
        return torch.autocast(kind, torch.bfloat16, cache_enabled=False)


def networks(device: torch.device) -> dict[str, DiT]:
    """Ours, and the same network with the textbook's blocks."""
    ours, textbook = disturbed(0), disturbed(0)
    for k, block in enumerate(textbook.blocks):
        textbook.blocks[k] = TextbookBlock(block)
    return {"ours": ours.to(device), "textbook": textbook.to(device)}


def captured(step: Step) -> Callable[[], None]:
    """The step as a CUDA graph."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def training_step(way: str) -> object:
    """A part: milliseconds of a step, by network, batch and precision."""

    def run(session: Session, numbers: Numbers) -> None:
        batches = (2,) if session.rehearse else (32, 512)
        precisions = ("float32", "bfloat16") if way == "compiled" else PRECISIONS
        for batch, precision in ((b, p) for b in batches for p in precisions):
            for name, network in networks(session.device).items():
                label = f"{name}, batch {batch}, {precision}"
                with products("highest" if precision == "float32" else "high"):
                    numbers[label] = attempt(
                        lambda n=network, b=batch, p=precision: _timed(n, b, p, way, session),
                        COMPILING if way == "compiled" else 0.0,
                    )

    return run


def _timed(network: DiT, batch: int, precision: str, way: str, session: Session) -> float:
    call = torch.compile(network, dynamic=False) if way == "compiled" else network
    step = Step(network, call, batch, precision)
    return milliseconds(captured(step) if way == "captured" else step, session, 50)


def package_step(session: Session, numbers: Numbers) -> None:
    """Milliseconds of an update as the package makes it, fresh sequences drawn."""
    law = decaying_process(SEQ_LEN, DIM).to(session.device)
    for batch in (2,) if session.rehearse else (32, 512):
        config = TrainConfig(steps=10**6, batch_size=batch, log_every=10**6, evaluate_at=())
        for precision in ("float32", "TF32"):
            run = iter(Training(networks(session.device)["ours"], law, config))
            with products("highest" if precision == "float32" else "high"):
                each = attempt(lambda run=run: milliseconds(lambda: next(run), session, 50))
            numbers[f"batch {batch}, {precision}"] = each


def ensembles(session: Session, numbers: Numbers) -> None:
    """Networks of chapter 6 times steps a second, by the number that are trained together."""
    law = decaying_process(16, 2)
    for count in (1, 3) if session.rehearse else (1, 8, 32, 128, 512):
        numbers[f"M = {count}"] = attempt(lambda count=count: _rate(count, law, session))


def _rate(count: int, law: GaussianProcess, session: Session) -> float:
    def small(seed: int) -> Member:
        network = DiT(2, 16, 32, 2, 2, fused=False, generator=torch.Generator().manual_seed(seed))
        return Member(network.to(session.device), law, seed)

    members, seconds = [small(seed) for seed in range(count)], []
    short, long = (1, 3) if session.rehearse else (5, 25)
    for steps in (short, short, long):  # the first warms up
        start = time.perf_counter()
        fit_ensemble(members, TrainConfig(steps=steps, batch_size=16))
        synchronise(session.device)
        seconds.append(time.perf_counter() - start)
    return round(count * (long - short) / max(seconds[2] - seconds[1], 1e-9), 1)


# ---- generation and measurement -----------------------------------------------------------------


def sampling(session: Session, numbers: Numbers) -> None:
    """Milliseconds for a thousand sequences in 40 steps."""
    law = decaying_process(SEQ_LEN, DIM).to(session.device)
    n, steps = (2, 2) if session.rehearse else (1000, 40)
    network = networks(session.device)["ours"].eval().requires_grad_(False)
    for name, score in {"DiT": network, "exact score": ExactScore(law)}.items():
        for method in ("ode", "sde"):
            numbers[f"{name}, {method}"] = attempt(
                lambda score=score, method=method: milliseconds(
                    lambda: sample(score, n, SEQ_LEN, DIM, method, steps=steps,
                                   device=session.device, show_progress=False),
                    session, 3,
                )
            )  # fmt: skip


def exact_scores(session: Session, numbers: Numbers) -> None:
    """Milliseconds of the exact score, and of a Cholesky factor of the whole covariance at t."""
    device, t = session.device, 0.3
    sizes = [(8, 2)] if session.rehearse else [(128, 256), (128, 4096), (128, 16384), (1024, 256)]
    for seq_len, batch in sizes:
        law = decaying_process(seq_len, DIM).to(device)
        score, v = ExactScore(law), torch.randn(batch, seq_len, DIM, device=device)
        whole = torch.kron(law.gram(), law.spatial).to(v)
        own = torch.eye(len(whole), device=device) * sigma(t) ** 2

        def cholesky(v: Tensor = v, whole: Tensor = whole, own: Tensor = own) -> Tensor:
            factor = torch.linalg.cholesky(alpha(t) ** 2 * whole + own)
            return -torch.cholesky_solve(v.flatten(1).T, factor).T.view_as(v)

        label, each = f"N = {seq_len}, batch {batch}", {}
        each["exact score"] = attempt(lambda s=score, v=v: milliseconds(lambda: s(v, t), session))
        each["Cholesky"] = attempt(lambda c=cholesky: milliseconds(c, session, 5))
        each["difference"] = attempt(
            lambda s=score, v=v, c=cholesky: ((s(v, t) - c()).norm() / c().norm()).item()
        )
        numbers[label] = each


# ---- attention ----------------------------------------------------------------------------------


def attention(session: Session, numbers: Numbers) -> None:
    """Milliseconds and bytes of certified attention beside two kernels, and where they cross."""
    exponents = (7, 8) if session.rehearse else range(10, 19)
    for exponent in exponents:
        numbers[f"L = 2^{exponent}"] = {
            name: attempt(lambda call=call: _cost(call, session))
            for name, call in methods(2**exponent, session.device).items()
        }
    for peer in ("flash, bfloat16", "efficient, float32"):
        numbers[f"faster than {peer} from"] = _crossing(numbers, "certified, float32", peer)


def methods(length: int, device: torch.device) -> dict[str, Callable[[], Tensor]]:
    """One sequence with one head of four coordinates, which kernels want padded to eight."""
    q, k, v = (x.to(device) for x in uniform_inputs(length, 4))
    padded = [nn.functional.pad(x, (0, 4))[None, None] for x in (q, k, v)]
    halves = [x.bfloat16() for x in padded]
    return {
        "certified, float32": lambda: poly_attention(q, k, v, 4, radius=1.0),
        "flash, bfloat16": lambda: _kernel(SDPBackend.FLASH_ATTENTION, halves),
        "efficient, float32": lambda: _kernel(SDPBackend.EFFICIENT_ATTENTION, padded),
    }


def _kernel(backend: SDPBackend, inputs: list[Tensor]) -> Tensor:
    if inputs[0].device.type != "cuda":
        raise RuntimeError("a kernel of CUDA's")
    with sdpa_kernel(backend):
        return nn.functional.scaled_dot_product_attention(*inputs, scale=1 / 4)


def _cost(call: Callable[[], Tensor], session: Session) -> Numbers:
    found: Numbers = {"ms": milliseconds(call, session, 10)}
    with MemoryMeter() as meter:
        call()
    found["bytes counted"] = meter.peak
    if session.cuda:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        found["bytes allocated"] = torch.cuda.max_memory_allocated() - before
    return found


def _crossing(numbers: Numbers, ours: str, peer: str) -> str:
    """The first length from which ours is always faster."""
    rows = [(k, x) for k, x in numbers.items() if k.startswith("L = ")]
    faster = [x[ours].get("ms", math.inf) < x[peer].get("ms", math.inf)
              for _, x in rows if "ms" in x[peer]]  # fmt: skip
    if len(faster) < len(rows) or not faster[-1]:
        return "nowhere here" if faster else "not measured"
    first = max((i + 1 for i, won in enumerate(faster) if not won), default=0)
    return rows[first][0]


PARTS = (
    Part("step, eager", training_step("eager"), 40),
    Part("step, captured in a graph", training_step("captured"), 40, needs="cuda"),
    Part("step, compiled", training_step("compiled"), 240, needs="cuda"),
    Part("step, as the package makes it", package_step, 30),
    Part("ensembles: networks × steps / s", ensembles, 60),
    Part("sampling", sampling, 60),
    Part("exact score", exact_scores, 40),
    Part("certified attention", attention, 60),
)
