#!/usr/bin/env bash
# Runs tests_lmms/ in the environment of lmms-eval: scripts/lmms_eval_tests.sh [ARGUMENTS OF pytest]
#
# Without arguments the result of the whole is written into
# benchmarks/results/cpu/lmms_eval_tests.json.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/lmms_eval_env.sh
export HF_HUB_OFFLINE=1 PYTHONPATH="$PWD/src:$PWD" OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
exec .lmms-env/bin/python scripts/lmms_eval_tests.py "$@"
