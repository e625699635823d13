#!/usr/bin/env bash
# Runs tests_vllm/ in the environment of vLLM: scripts/vllm_tests.sh [FILES]
#
# Without arguments the result of the whole is written into
# benchmarks/results/cpu/vllm_tests.json.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/vllm_env.sh
export HF_HUB_OFFLINE=1 OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
export PYTHONPATH="$PWD/src:$PWD:$PWD/tests_vllm"
exec .vllm-env/bin/python scripts/vllm_tests.py "$@"
