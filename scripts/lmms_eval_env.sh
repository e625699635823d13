#!/usr/bin/env bash
# Makes .lmms-env, the environment of lmms-eval: scripts/lmms_eval_env.sh [PYTHON]
#
# lmms-eval asks for torchvision, which has no build beside a CPU torch and is not needed here: so it
# is installed without its dependencies, and these one by one. What makes the environment is hashed,
# and nothing is done where that has not changed.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${1:-python3}
env=.lmms-env
made_of=$(cat scripts/lmms_eval_env.sh constraints.txt pyproject.toml | sha256sum | cut -c1-16)
if [[ -f $env/made_of && $(<$env/made_of) == "$made_of" ]]; then
    echo "$env is up to date"
    exit 0
fi
rm -rf $env
"$python" -m venv $env
install="$env/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt"
# PyAV 16 is newer than lmms-eval takes, and filelock 4 has moved a module that it reaches into.
$install --editable '.[test]' 'av<16' 'filelock<4'
$env/bin/pip install --quiet --disable-pip-version-check --no-deps lmms-eval==0.7.3
# Left out: what brings torchvision (timm), what only other models or downloads need, and tools.
$env/bin/python - > $env/requirements.txt <<'PYTHON'
import re
from importlib.metadata import requires

LEFT_OUT = {
    "torch", "torchvision", "timm", "transformers", "transformers-stream-generator",
    "sentence_transformers", "yt-dlp", "ruff", "pre-commit",
}
for one in requires("lmms-eval"):
    name = re.split(r"[<>=\[; ]", one)[0]
    if ";" not in one and name not in LEFT_OUT:
        print(one)
PYTHON
$install --requirement $env/requirements.txt pandas 'av<16' 'filelock<4'
# Files for Linux on x86-64 and for Windows only; LongVideoBench imports it.
$install --only-binary :all: decord || echo "no decord here: LongVideoBench cannot be imported"
if $env/bin/python -c 'import torchvision' 2> /dev/null; then
    echo "torchvision came in by a dependency: leave that one out" >&2
    exit 1
fi
$env/bin/python scripts/lmms_eval_imports.py --listed
echo "$made_of" > $env/made_of
