r"""Noise with a temporal covariance: through a root of the matrix, or by FFT.

Chunks come as (N, rows, d), frames first: correlated along frames, white along the rest.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ..support.draws import box_muller, drawn
from ..support.rounding import unit_roundoff
from ..support.validation import NotPSDError, require_finite

EMBEDDING_GROWTH = 64  # largest circulant embedding, in multiples of the smallest one
DENSE_CHUNK = 2**17  # numbers drawn at a time, so that a chunk stays in cache
CIRCULANT_CHUNK = 2**19  # the same for transforms, which gain from coming in batches


def dense_noise(
    root: Tensor, n: int, dim: int, generator: torch.Generator | None
) -> Iterator[tuple[slice, Tensor]]:
    r"""Noise with covariance :math:`R R^\top` along frames.

    Args:
        root: R, (N, N), in whose dtype and on whose device noise comes.
        n: number of sequences.
        dim: d, independent coordinates of each.
        generator: source of randomness.

    Yields:
        Which sequences, and their noise (N, rows, d).
    """
    seq_len = len(root)
    for rows in _chunks(n, DENSE_CHUNK // (seq_len * dim)):
        white = _white(root, generator, seq_len, (rows.stop - rows.start) * dim)
        # one large product: every sequence and coordinate is a column
        yield rows, (root @ white).reshape(seq_len, -1, dim)


def circulant_noise(
    amplitude: Tensor, seq_len: int, n: int, dim: int, generator: torch.Generator | None
) -> Iterator[tuple[slice, Tensor]]:
    """The same by FFT: each complex transform gives two independent real sequences.

    Args:
        amplitude: what :func:`circulant_amplitude` returns, (M,).
        seq_len: N.
        n, dim, generator: as in :func:`dense_noise`.
    """
    for rows in _chunks(n, CIRCULANT_CHUNK // (len(amplitude) * dim)):
        columns = (rows.stop - rows.start) * dim
        white = _white(amplitude, generator, 2, -(-columns // 2), len(amplitude))
        path = torch.fft.fft(torch.complex(white[0], white[1]) * amplitude)[:, :seq_len]
        noise = torch.cat([path.real, path.imag])[:columns]  # (rows * d, N)
        yield rows, noise.T.reshape(seq_len, -1, dim)


def circulant_amplitude(kernel: Callable[[Tensor], Tensor], seq_len: int) -> Tensor:
    r""":math:`\sqrt{\lambda_k / M}` of the smallest power-of-two circulant that is a covariance.

    Its first row is the kernel, there and back (Wood and Chan 1994).

    Args:
        kernel: a function of the lag.
        seq_len: N; M is at least 2(N − 1) and at most 64 times the least power of two that is.

    Returns:
        (M,) in float64, on the CPU.

    Raises:
        NotPSDError: if none is positive semidefinite.
    """
    half = 2 ** math.ceil(math.log2(max(seq_len - 1, 1)))
    for _ in range(int(math.log2(EMBEDDING_GROWTH)) + 1):
        values = kernel(torch.arange(half + 1, dtype=torch.float64, device="cpu"))
        require_finite("the kernel's values", values)
        eigenvalues = torch.fft.hfft(torch.complex(values, torch.zeros_like(values)))
        if eigenvalues.min() >= -_transform_rounding(values, len(eigenvalues)):
            return (eigenvalues.clamp(min=0) / len(eigenvalues)).sqrt()
        half *= 2
    raise NotPSDError(
        f"no circulant embedding of {kernel!r} up to {half} frames is positive"
        f" semidefinite for seq_len={seq_len} (smallest eigenvalue"
        f" {eigenvalues.min():.3g}); the correlation does not decay: pass"
        " gram(kernel, seq_len) as the temporal covariance instead"
    )


def _transform_rounding(values: Tensor, size: int) -> float:
    r"""What rounding may do to an eigenvalue of a circulant of ``size`` rows, by its transform.

    An FFT errs by :math:`7\log_2 M\,u` of the 2-norm of its result (Higham 2002, theorem 24.2),
    :math:`\sqrt M` times that of its input; a correlation, a power and an exponential, is itself
    taken to be off by 8 u.
    """
    norm = math.sqrt(2 * size) * values.norm().item()  # the first row holds every value twice
    return (8 + 7 * math.log2(size)) * unit_roundoff(values.dtype) * norm


def _white(like: Tensor, generator: torch.Generator | None, *shape: int) -> Tensor:
    return drawn(box_muller, *shape, generator=generator, dtype=like.dtype, device=like.device)


def _chunks(n: int, step: int) -> Iterator[slice]:
    step = max(1, step)
    for start in range(0, n, step):
        yield slice(start, min(start + step, n))
