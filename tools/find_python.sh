#!/bin/sh
# Print the first interpreter that is Python 3.11 to 3.13 (the versions requirements.txt is
# pinned for). PYTHON=/path/to/python chooses one by hand.
set -eu

suitable='import sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))'

for candidate in ${PYTHON:-python3.11 python3.12 python3.13 python3 python}; do
    # Running it, not only finding it: version managers leave stubs that do nothing.
    if "$candidate" -c "$suitable" >/dev/null 2>&1; then
        command -v "$candidate"
        exit 0
    fi
done

if [ -n "${PYTHON:-}" ]; then
    echo "PYTHON=$PYTHON is not a working Python 3.11, 3.12 or 3.13 with the venv module." >&2
else
    echo "No Python 3.11, 3.12 or 3.13 found. Install one (with its venv module)," >&2
    echo "or name it: make PYTHON=/path/to/python3.11" >&2
fi
exit 1
