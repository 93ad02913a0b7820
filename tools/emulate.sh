#!/usr/bin/env bash
# Run the sharpest of the portability checks as another x86-64 processor.
#
#     tools/emulate.sh [PROCESSOR [pytest's arguments]]
#     tools/emulate.sh                 # EPYC, Haswell, Skylake-Client and Nehalem, one after another
#     tools/emulate.sh Haswell
#     tools/emulate.sh EPYC tests/measures/test_gaussians.py -k singular
#
# BLAS, LAPACK and torch choose their kernels by the processor they find, and sums change with the
# kernels. QEMU's user emulation shows the Python of .venv (or $PYTHON) the processor that is named
# (list them with `qemu-x86_64 -cpu help`; AVX-512 is not emulated) and needs no root, no image and
# no second installation: Debian and Ubuntu have it in the package qemu-user or qemu-user-static.
#
# It takes about 20 times as long as the processor at hand: some ten minutes a processor. A check
# that starts a program of its own would leave the emulation; none of the list does.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=${PYTHON:-.venv/bin/python}
checks=(
    tests/training/test_ensemble.py::test_who_else_is_in_the_ensemble_does_not_matter
    tests/attention/test_polynomial.py::test_bound_is_attained_by_the_worst_input_and_never_passed
    tests/studies/test_fig4a.py::test_slopes_of_a_power_law
    tests/latent/test_errors.py::test_sliced_distance_of_shifted_samples
    tests/measures/test_gaussians.py
    tests/house/test_seeds.py
)

qemu=$(command -v qemu-x86_64 || command -v qemu-x86_64-static) || {
    echo "expected qemu-x86_64 on the path; Debian and Ubuntu have it in qemu-user" >&2
    exit 2
}
# what is set for the processor at hand would hide the other one's choice
unset MKL_CBWR MKL_ENABLE_INSTRUCTIONS OPENBLAS_CORETYPE ATEN_CPU_CAPABILITY ONEDNN_MAX_CPU_ISA
export OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE=1

emulate() {
    echo "=== as $1"
    "$qemu" -cpu "$1" "$python" -m pytest -q -p no:cacheprovider "${checks[@]}"
}

processors=("${1:-EPYC}")
(($#)) || processors+=(Haswell Skylake-Client Nehalem)
(($# < 2)) || checks=("${@:2}")
failed=()
for processor in "${processors[@]}"; do
    emulate "$processor" || failed+=("$processor")
done
if ((${#failed[@]})); then
    echo "failed as: ${failed[*]}" >&2
    exit 1
fi
