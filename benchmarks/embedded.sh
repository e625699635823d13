#!/usr/bin/env bash
# Remakes the embedded model from random weights (docs/embedded.md) and scores it. The same command
# resumes; it stops by itself before SECONDS are over, with exit status 75.
#
#   benchmarks/embedded.sh OUT [SECONDS [[STAGE:]SECTION.KEY=VALUE ...]]
#
# A setting is of all stages, or of the one that is named: stills, short or long. OUT/model is what
# src/videonsa/assets/embedded would become, OUT/embedded.json its scores.
# COUNT=40 in the environment makes as few clips of each length, to try it.
set -euo pipefail
out=${1:?want a folder}
seconds=${2:-86400}
count=${COUNT:-40000}
cd "$(dirname "$0")/.."
export PYTHONPATH=$PWD/src${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1 OMP_NUM_THREADS=1
videonsa() { python3 -m videonsa "$@"; }
left() { echo $((seconds - SECONDS)); }
# What a stage has of the settings, NAME [SETTING ...]: an argument of `train` a line.
settings_of() {
    local name=$1 setting
    for setting in "${@:2}"; do
        case $setting in
            "$name":*) printf '%s\n' --set "${setting#*:}" ;;
            stills:* | short:* | long:*) ;;
            *) printf '%s\n' --set "$setting" ;;
        esac
    done
}

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
        mapfile -t settings < <(settings_of "$name" "${@:3}")
        videonsa train "benchmarks/recipes/tiny-$name.yaml" --set "model.base=$base" --set "data.manifest=$out/data/$name" \
            --set "run.seconds=$(($(left) - 45))" "${settings[@]}" --out "$run"
        [ -d "$run/model" ] || exit 75
    fi
    base=$run/model
done
videonsa convert "$base" "$out/model" --dtype bfloat16 --force
python3 -m benchmarks.embedded --model "$out/model" --out "$out/embedded.json"
