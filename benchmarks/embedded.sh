#!/usr/bin/env bash
# Remakes the embedded model from random weights (docs/embedded.md) and scores it. The same command
# goes on where it was stopped; it stops by itself before SECONDS are over, with exit status 75.
#
#   benchmarks/embedded.sh OUT [SECONDS [SECTION.KEY=VALUE ...]]
#
# OUT/model is what src/videonsa/assets/embedded would become, OUT/embedded.json its scores.
# COUNT=40 in the environment makes as few clips of each length, to try it.
set -euo pipefail
out=${1:?want a folder}
seconds=${2:-86400}
settings=()
for setting in "${@:3}"; do settings+=(--set "$setting"); done
count=${COUNT:-40000}
cd "$(dirname "$0")/.."
export PYTHONPATH=$PWD/src${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1 OMP_NUM_THREADS=1
videonsa() { python3 -m videonsa "$@"; }
left() { echo $((seconds - SECONDS)); }

first=0 builds=()
mkdir -p "$out/logs"
for stage in stills:1 short:8 long:24; do
    name=${stage%:*}
    if [ ! -f "$out/data/$name/manifest.parquet" ]; then
        videonsa data build "clips:count=$count,first=$first,patches=${stage#*:}" --min-frames 0 \
            --model embedded --out "$out/data/$name" >"$out/logs/data-$name.log" 2>&1 &
        builds+=($!)
    fi
    first=$((first + 1000000))
done
for build in "${builds[@]}"; do wait "$build"; done

base=embedded
for name in stills short long; do
    run=$out/runs/tiny-$name
    if [ ! -d "$run/model" ]; then
        # It starts for half a minute, and saves.
        [ "$(left)" -gt 90 ] || exit 75
        videonsa train "tiny-$name" --set "model.base=$base" --set "data.manifest=$out/data/$name" \
            --set "run.seconds=$(($(left) - 45))" ${settings[@]+"${settings[@]}"} --out "$run"
        [ -d "$run/model" ] || exit 75
    fi
    base=$run/model
done
videonsa convert "$base" "$out/model" --dtype bfloat16 --force
python3 -m videonsa.evals.embedded --model "$out/model" --out "$out/embedded.json"
