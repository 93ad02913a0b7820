#!/usr/bin/env bash
# diffusers: rescaled to zero terminal SNR, the last timestep has more signal than the one before.
#
# Versions: Python 3.11, torch 2.13.0, diffusers 0.42.1.
# Expected: with rescale_betas_zero_snr=True the last timestep is (nearly) pure noise, and the noise
#   grows with the timestep, so that 999 is where sampling begins.
# Seen (2026-11-28): the multistep and Euler schedulers put 2**-24 = 6.0e-8 in place of the last 0 of
#   alphas_cumprod. On the default (linear) schedule the entry before is 4.2e-9 and the one before
#   that 1.7e-8: timestep 999 is less noisy than 996, 997 and 998, its sigma 4096 after 15406. On
#   scaled_linear the entry before is 2.0e-7, and all is well. DDPM and DDIM keep the 0.
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
python3.11 -m venv "$tmp/venv"
"$tmp/venv/bin/pip" install --quiet --disable-pip-version-check \
    torch==2.13.0 numpy==2.4.6 diffusers==0.42.1
export OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1
"$tmp/venv/bin/python" -I - <<'EOF'
import diffusers

PATCHED = ("DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "EulerDiscreteScheduler",
           "EulerAncestralDiscreteScheduler")
LATENT = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


def kept(name, **options):
    made = getattr(diffusers, name)(rescale_betas_zero_snr=True, **options)
    return made.alphas_cumprod.double()


for name in PATCHED:
    for schedule, options, rises in (("linear", {}, True), ("scaled_linear", LATENT, False)):
        bar = kept(name, **options)
        sigmas = ((1 - bar) / bar).sqrt()
        print(f"{name}, {schedule}: alphas_cumprod ends {bar[-3]:.1e}, {bar[-2]:.1e},"
              f" {bar[-1]:.1e}; sigmas {sigmas[-2]:.0f}, {sigmas[-1]:.0f}")
        assert (bar[-1] > bar[-2]).item() == rises, (name, schedule)
        assert bar[-1] == 2**-24
for name in ("DDPMScheduler", "DDIMScheduler"):
    assert kept(name)[-1] == 0
EOF
