#!/usr/bin/env bash
# What nbval's strict comparison (--nbval, not --nbval-lax) lets pass.
#
# Versions: Python 3.11, nbval 0.11.0, pytest 9.2.0, nbformat 5.11.1, ipykernel 7.4.0.
# Expected: a cell passes if it now shows what the notebook holds: nothing more, nothing less; and
#   a cell with the tag raises-exception must raise.
# Seen (2026-11-27): what is compared is text (streams, stderr too), and pictures of some formats
#   only; and a cell without an execution count and outputs was "never run", so nothing is compared.
#     prints 42, nothing stored, execution count 1   : fails
#     prints 42, nothing stored, no execution count  : passes
#     shows a PNG, another PNG stored                : passes
#     shows no PNG, a PNG stored                     : passes
#     shows an SVG, another SVG stored               : fails
#     tagged raises-exception, raises another error  : fails
#     tagged raises-exception, raises nothing        : passes
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
python3.11 -m venv "$tmp/venv"
"$tmp/venv/bin/pip" install --quiet --disable-pip-version-check \
    nbval==0.11.0 pytest==9.2.0 nbformat==5.11.1 ipykernel==7.4.0
cat > "$tmp/cells.py" <<'EOF'
import contextlib
import io
import os
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output

SHOW = "from IPython.display import display\ndisplay({}, raw=True)"
RAISES = {"tags": ["raises-exception"]}


def shown(**data):
    """Code that displays a bundle, and the output that stands for it in a notebook."""
    bundle = {{"png": "image/png", "svg": "image/svg+xml", "text": "text/plain"}[k]: v
              for k, v in data.items()}
    return SHOW.format(bundle), new_output("display_data", data=bundle)


error = new_output("error", ename="ValueError", evalue="other", traceback=["ValueError: other"])
now_png, stored_png = shown(png="aGVsbG8=", text="figure")[0], shown(png="d29ybGQ=", text="figure")[1]
now_svg, stored_svg = shown(svg="<svg/>", text="figure")[0], shown(svg="<svg> </svg>", text="figure")[1]
cells = {
    "prints 42, nothing stored, execution count 1": new_code_cell("print(42)", execution_count=1),
    "prints 42, nothing stored, no execution count": new_code_cell("print(42)"),
    "shows a PNG, another PNG stored": new_code_cell(now_png, execution_count=1, outputs=[stored_png]),
    "shows no PNG, a PNG stored": new_code_cell(
        shown(text="figure")[0], execution_count=1, outputs=[stored_png]
    ),
    "shows an SVG, another SVG stored": new_code_cell(
        now_svg, execution_count=1, outputs=[stored_svg]
    ),
    "tagged raises-exception, raises another error": new_code_cell(
        "1 / 0", execution_count=1, outputs=[error], metadata=RAISES
    ),
    "tagged raises-exception, raises nothing": new_code_cell(
        "pass", execution_count=1, metadata=RAISES
    ),
}
os.chdir(sys.argv[1])
kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
passes = {}
for number, (name, cell) in enumerate(cells.items()):
    path = Path(f"case{number}.ipynb")
    nbformat.write(new_notebook(cells=[cell], metadata=kernel), path)
    report = io.StringIO()
    with contextlib.redirect_stdout(report):
        code = pytest.main(
            ["--nbval", "--nbval-current-env", "-q", "-p", "no:cacheprovider", str(path)]
        )
    assert code in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED), report.getvalue()
    passes[name] = code == pytest.ExitCode.OK
    print(f"{name:46}: {'passes' if passes[name] else 'fails'}")
assert list(passes.values()) == [False, True, True, True, False, False, True], passes
EOF
"$tmp/venv/bin/python" -I "$tmp/cells.py" "$tmp"
