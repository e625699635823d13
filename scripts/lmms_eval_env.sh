#!/usr/bin/env bash
# Makes .lmms-env, the environment of lmms-eval, on top of .venv.
#
# .lmms-env holds what .venv lacks and what lmms-eval needs in another version. These come first on
# the path; torch, transformers and all else are those of .venv. lmms-eval asks for torchvision, which
# has no build beside a CPU torch and is not needed here: so it is installed without its dependencies,
# and these by name. What makes the environment is hashed, and nothing is done where that has not
# changed.
set -euo pipefail
cd "$(dirname "$0")/.."
env=.lmms-env
if [[ ! -x .venv/bin/python ]]; then
    echo "$env is made on top of .venv, which is not there: run make install" >&2
    exit 1
fi
made_of=$({
    pwd -P
    ls -d .venv/lib/python*/site-packages/*.dist-info
    cat .venv/pyvenv.cfg scripts/lmms_eval_env.sh constraints.txt pyproject.toml
} | sha256sum | cut -c1-16)
if [[ -f $env/made_of && $(<$env/made_of) == "$made_of" ]]; then
    echo "$env is up to date"
    exit 0
fi
rm -rf $env
.venv/bin/python -m venv $env
packages='import sysconfig; print(sysconfig.get_path("purelib"))'
.venv/bin/python -c "$packages" > "$($env/bin/python -c "$packages")/below.pth"
install="$env/bin/python -m pip install --quiet --disable-pip-version-check --no-compile"
# accelerate is in .venv too, but its command has to start the Python of this environment.
$install --no-deps --ignore-installed lmms-eval==0.7.3 accelerate
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
echo "pip will name what is left out on purpose (torchvision and others) as missing"
# PyAV 16 is newer than lmms-eval takes, and filelock 4 has moved a module that it reaches into.
$install --constraint constraints.txt --requirement $env/requirements.txt \
    --editable '.[test]' pandas 'av<16' 'filelock<4'
# Files for Linux on x86-64 and for Windows only; LongVideoBench imports it.
$install --only-binary :all: decord || echo "no decord here: LongVideoBench cannot be imported"
if $env/bin/python -c 'import torchvision' 2> /dev/null; then
    echo "torchvision came in by a dependency: leave that one out" >&2
    exit 1
fi
echo "$made_of" > $env/made_of
