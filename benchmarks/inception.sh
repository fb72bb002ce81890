#!/usr/bin/env bash
# The extractor `inception` in an environment of its own, since torchvision's build from the package
# index does not import beside the CPU build of torch: bash benchmarks/inception.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

VENV=.venv-inception
[[ -d $VENV ]] || python3.11 -m venv "$VENV"
pip() { "$VENV/bin/python" -m pip install -q --disable-pip-version-check "$@"; }
pip -c constraints.txt -e . scipy
pip --no-deps torchvision==0.28.0 torch-fidelity==0.4.0
exec "$VENV/bin/python" benchmarks/inception.py "$@"
