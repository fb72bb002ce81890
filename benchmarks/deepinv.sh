#!/usr/bin/env bash
# Our adapters against the real deepinv, in an environment of its own: `out/deepinv-env`.
#
#     benchmarks/deepinv.sh [--images 16]
#
# deepinv needs a torchvision that fits its torch; set TORCH to the pair that your machine has.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
environment=${ENVIRONMENT:-out/deepinv-env}
torch=${TORCH:-torch==2.14.1 torchvision==0.29.1}

if [[ ! -x $environment/bin/python ]]; then
    "${PYTHON:-python3.11}" -m venv "$environment"
fi
if ! "$environment/bin/python" -c 'import deepinv, sfumato' 2>/dev/null; then
    # shellcheck disable=SC2086 - a list of two packages
    "$environment/bin/python" -m pip install -q --disable-pip-version-check $torch
    "$environment/bin/python" -m pip install -q --disable-pip-version-check deepinv -e .
fi
exec "$environment/bin/python" benchmarks/deepinv_adapters.py "$@"
