#!/usr/bin/env bash
# Sets up the environment when it is missing, then checks the style and runs the tests (CPU, offline).
#   ./tests/run.sh             the quick ones: without training, compiling, laws, every family, Ray
#   ./tests/run.sh all         all of them, what .ci/run calls
#   ./tests/run.sh -k pld      arguments go to pytest (a later -m takes the place of ours)
#   WORKERS=1 ./tests/run.sh   one process (default: 2, one thread each)
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=$(./eval.sh --setup)
if "$PYTHON" -m ruff --version > /dev/null 2>&1; then
    "$PYTHON" -m ruff check --quiet .
    "$PYTHON" -m ruff format --quiet --check .
fi
chosen=(-m "not training and not compiled and not ray and not families and not slow")
if [ "${1:-}" = all ]; then
    chosen=()
    shift
fi
export OMP_NUM_THREADS=1
exec "$PYTHON" -m pytest -q -n "${WORKERS:-2}" --dist loadfile ${chosen[@]+"${chosen[@]}"} "$@"
