#!/usr/bin/env bash
# diffusers' schedulers, given the exact noise of a Gaussian, at their defaults.
#
# Versions: Python 3.11, torch 2.13.0, diffusers 0.42.1.
# Expected: data N(0, v) has a noise prediction in closed form. With it a scheduler returns N(0, v)
#   within its order: DDPM's 1000 steps to a per cent, and higher orders no worse than lower ones;
#   set_timesteps(20) means 20 calls of the model, from the last training step down.
# Seen (2026-11-27): variance generated over v
#     v = 1   : DDPM 1000 steps .46 (clip_sample=False .99), DDIM 50 steps .50 (.95)
#     v = .01 : DDIM 50 steps, unclipped .63; DPM-Solver++ 20 .24; UniPC 10 .08; Heun 20 1.91
#   The first two clip the predicted data to [-1, 1] by default: right for pixels, and half of the
#   variance of standardised data. Heun's 20 steps are 39 calls, PNDM's 29; DDIM's start at 950 of 999.
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
python3.11 -m venv "$tmp/venv"
"$tmp/venv/bin/pip" install --quiet --disable-pip-version-check \
    torch==2.13.0 numpy==2.4.6 diffusers==0.42.1
export OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1
"$tmp/venv/bin/python" -I - <<'EOF'
import diffusers
import torch

SAMPLES = 20_000


def generate(scheduler, steps, variance):
    """Variance generated over the data's, calls of the noise prediction, the first step."""
    generator = torch.Generator().manual_seed(0)
    scheduler.set_timesteps(steps)
    x = torch.randn(SAMPLES, 1, generator=generator, dtype=torch.float64)
    x = x * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        kept = scheduler.alphas_cumprod[int(t)].double()
        noisy = scheduler.scale_model_input(x, t)
        noise = (1 - kept).sqrt() * noisy / (kept * variance + 1 - kept)
        random = {"generator": generator} if isinstance(scheduler, diffusers.DDPMScheduler) else {}
        x = scheduler.step(noise, t, x, **random).prev_sample
    return x.var().item() / variance, len(scheduler.timesteps), int(scheduler.timesteps[0])


cases = [  # scheduler, options, steps, variance of the data; ratio expected, calls, first step
    ("DDPMScheduler", {}, 1000, 1.0, 0.46, 1000, 999),
    ("DDPMScheduler", {"clip_sample": False}, 1000, 1.0, 0.99, 1000, 999),
    ("DDIMScheduler", {}, 50, 1.0, 0.50, 50, 980),
    ("DDIMScheduler", {"clip_sample": False}, 50, 1.0, 0.95, 50, 980),
    ("DDIMScheduler", {"clip_sample": False}, 20, 1.0, 0.85, 20, 950),
    ("PNDMScheduler", {}, 20, 1.0, 1.03, 29, 950),
    ("DDIMScheduler", {"clip_sample": False}, 50, 0.01, 0.63, 50, 980),
    ("DPMSolverMultistepScheduler", {}, 20, 0.01, 0.24, 20, 999),
    ("UniPCMultistepScheduler", {}, 10, 0.01, 0.08, 10, 999),
    ("HeunDiscreteScheduler", {}, 20, 0.01, 1.91, 39, 999),
]
for name, options, steps, variance, ratio, calls, first in cases:
    found = generate(getattr(diffusers, name)(**options), steps, variance)
    print(
        f"{name}({options}), {steps} steps, variance {variance}: ratio {found[0]:.2f},"
        f" {found[1]} calls, the first at {found[2]}"
    )
    # 20,000 samples: the standard error of a variance is one per cent of it
    assert abs(found[0] / ratio - 1) < 0.07, (name, found)
    assert found[1:] == (calls, first), (name, found)
EOF
