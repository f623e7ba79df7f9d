#!/bin/bash
# What the zoos' scripts do: `run.sh MODEL SCRIPT FLAGS`. Python is that of the checkout where `make env` made one, else
# python3; PYTHON names another.
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
if [ -z "$PYTHON" ]; then
    PYTHON=python3
    [ -x "$root/.venv/bin/python" ] && PYTHON=$root/.venv/bin/python
fi
exec "$PYTHON" "$root/tools/zoos/start.py" "$@"
