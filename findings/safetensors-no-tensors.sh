#!/usr/bin/env bash
# safetensors 0.4.0 to 0.4.3 write files that they cannot read: metadata and no tensors.
#
# Versions: Python 3.11, safetensors 0.4.3 beside 0.4.4 (numpy 1.26.4).
# Expected: what `save` accepts, `load` reads. A file that holds metadata alone is an edge, yet
#   either half may be empty: no metadata, or no tensors.
# Seen (2026-11-27): `save({})` can be read, `save({}, {"a": "b"})` cannot: the header begins with
#   the tensors' own empty braces and goes on behind them. It is no JSON, and no version reads it.
#     0.4.3: b'{},"__metadata__":{"a":"b"}}'  SafetensorError ... InvalidHeaderDeserialization
#     0.4.4: b'{"__metadata__":{"a":"b"}}'    {}
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
python3.11 -m venv "$tmp/venv"
cat > "$tmp/empty.py" <<'EOF'
import json
import sys

import safetensors
from safetensors.numpy import load, save


def outcome(content):
    try:
        return load(content)
    except safetensors.SafetensorError as error:
        return f"{type(error).__name__}: {error}"


plain, described = save({}), save({}, {"a": "b"})
header = described[8:].strip()
print(safetensors.__version__, plain[8:].strip(), outcome(plain))
print(safetensors.__version__, header, outcome(described))
assert outcome(plain) == {}
if safetensors.__version__ == "0.4.3":
    assert header == b'{},"__metadata__":{"a":"b"}}'
    assert "InvalidHeaderDeserialization" in outcome(described)
    with open(sys.argv[1], "wb") as file:
        file.write(described)
else:
    assert json.loads(header) == {"__metadata__": {"a": "b"}} and outcome(described) == {}
    with open(sys.argv[1], "rb") as file:
        older = outcome(file.read())
    print(safetensors.__version__, "reads the file of 0.4.3:", older)
    assert older != {}
EOF
for version in 0.4.3 0.4.4; do
    "$tmp/venv/bin/pip" install --quiet --disable-pip-version-check safetensors==$version numpy==1.26.4
    "$tmp/venv/bin/python" -I "$tmp/empty.py" "$tmp/file"
done
