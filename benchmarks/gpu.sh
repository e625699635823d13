#!/usr/bin/env bash
# The numbers of docs/results.md that need a GPU, in parts of a few minutes each.
#
#   benchmarks/gpu.sh tests OUT       the tests marked gpu
#   benchmarks/gpu.sh forward OUT     attention.json, kernels.json
#   benchmarks/gpu.sh backward OUT    attention_backward.json, attention_both.json, kernels_backward.json
#   benchmarks/gpu.sh prefill OUT     prefill.json: 128K tokens, NSA and dense
#   benchmarks/gpu.sh fp8 OUT         fp8_products.json, prefill_fp8.json, weights_error.json
#   benchmarks/gpu.sh decode OUT      decode_steps.json, session.json, decode_steps_fp8.json,
#                                     decode_steps_peers.json: beside transformers
#   benchmarks/gpu.sh peers OUT       prefill_peers.json: the same, transformers, another frame size
#   benchmarks/gpu.sh reading OUT     prefill_reading.json: a video file, mostly on the CPUs
#   benchmarks/gpu.sh long OUT        prefill_long.json: 512K and 1M tokens
#   benchmarks/gpu.sh baselines OUT   block_sparse.json, estimators.json, prefill_baselines.json: every
#                                     attention method, its kernels and its estimators
#   benchmarks/gpu.sh train OUT       train.json
#   benchmarks/gpu.sh shared OUT      128K tokens over all GPUs of the machine: train_1.json, train_2.json,
#                                     train_2_fsdp.json, ..., prefill_1.json, prefill_2.json, ...
#   benchmarks/gpu.sh shared OUT ONE  the same, against train.json and prefill.json in the folder ONE
#                                     where they are of one GPU of this kind: not measured again
#   benchmarks/gpu.sh whole OUT       train_2_whole.json: whole steps of all 28 layers of the 7B model on
#                                     two GPUs by FSDP2, a pack of 36,864 tokens each
#
# Copy the files of OUT to benchmarks/results/GPU, then `make results`.
set -uo pipefail
part=${1:?want tests, forward, backward, prefill, fp8, decode, peers, reading, long, baselines, train, shared or whole}
out=${2:?want a folder for the results}
cd "$(dirname "$0")/.."
export PYTHONPATH=$PWD/src${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
mkdir -p "$out"
failed=0  # what fails leaves the others, and the exit status
videonsa() { python3 -m videonsa "$@" || failed=1; }
measured_on() { # GPU FILE...
    local gpu=$1 file
    shift
    for file; do grep -q "\"device\": \"$gpu\"" "$file" || return 1; done
}
shapes=7b-16k,7b-32k,7b-64k,7b-128k

case $part in
tests) python3 -m pytest tests -m gpu -p no:cacheprovider || failed=1 ;;
forward)
    videonsa bench attention --shapes $shapes,7b-256k,3b-128k,frame60-32k,frame60-128k \
        --repeats 10 --out "$out/attention.json"
    python3 benchmarks/attention_kernels.py --out "$out/kernels.json" || failed=1
    ;;
backward)
    videonsa bench attention --shapes $shapes --passes backward,both --repeats 6 \
        --out "$out/attention.json"
    python3 benchmarks/attention_kernels.py --pass backward --out "$out/kernels_backward.json" || failed=1
    ;;
prefill)
    videonsa bench prefill --model 7B --tokens 128k --video none --repeats 3 \
        --out "$out/prefill.json"
    ;;
fp8)
    python3 benchmarks/fp8_products.py --out "$out/fp8_products.json" || failed=1
    videonsa bench prefill --model 7B --weights fp8 --tokens 128k --no-dense --video none \
        --repeats 3 --out "$out/prefill_fp8.json"
    python3 benchmarks/weights_error.py --device cuda --out "$out/weights_error.json" || failed=1
    ;;
decode)
    videonsa bench decode --model 7B --out "$out/decode_steps.json"
    videonsa bench session --model 7B --out "$out/session.json"
    videonsa bench decode --model 7B --weights fp8 --tokens 8k,128k --batch 1 \
        --out "$out/decode_steps_fp8.json"
    # What 60 s do not suffice for, of transformers' static cache, is added by a second run with a
    # longer --peer-seconds: runs that a file has of the same machine and commit are kept.
    videonsa bench decode --model 7B --tokens 8k,128k --peers --peer-seconds 60 \
        --out "$out/decode_steps_peers.json"
    ;;
peers)
    videonsa bench prefill --model 7B --tokens 128k --frame 224x224,168x280 --peers --video none \
        --repeats 2 --out "$out/prefill_peers.json"
    ;;
reading)
    videonsa bench prefill --model 7B --tokens 1k --no-dense --workers 8 --repeats 2 \
        --out "$out/prefill_reading.json"
    ;;
long)
    videonsa bench prefill --model 7B --tokens 512k,1m --video none --no-dense --repeats 1 \
        --regimes random \
        --out "$out/prefill_long.json"
    ;;
baselines)
    python3 benchmarks/block_sparse.py --out "$out/block_sparse.json" || failed=1
    python3 benchmarks/estimators.py --out "$out/estimators.json" || failed=1
    videonsa bench prefill --model 7B --tokens 128k --video none --regimes coherent --repeats 1 \
        --method all --out "$out/prefill_baselines.json"
    ;;
train)
    export PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True
    videonsa bench train --model 7B --tokens 16k,36k,128k --out "$out/train.json"
    ;;
shared)
    export PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True
    gpus=$(python3 -c 'import torch; print(torch.cuda.device_count())')
    train_one=${3:+$3/train.json} prefill_one=${3:+$3/prefill.json}
    here=$(python3 -c 'import torch; print(torch.cuda.get_device_name())')
    if [ -z "$train_one" ] || ! measured_on "$here" "$train_one" "$prefill_one"; then
        train_one=$out/train_1.json prefill_one=$out/prefill_1.json
        videonsa bench train --model 7B --tokens 128k --parts layers --out "$train_one"
        videonsa bench prefill --model 7B --tokens 128k --video none --repeats 2 \
            --out "$prefill_one"
    fi
    for n in 2 4 8; do
        [ "$n" -le "$gpus" ] || break
        for fsdp in "" --fsdp; do
            python3 -m torch.distributed.run --standalone --nproc-per-node "$n" -m videonsa \
                bench train --model 7B --tokens 128k --parts layers $fsdp \
                --one "$train_one" --out "$out/train_$n${fsdp:+_fsdp}.json" || failed=1
        done
        python3 -m torch.distributed.run --standalone --nproc-per-node "$n" -m videonsa \
            bench prefill --model 7B --tokens 128k --repeats 2 --one "$prefill_one" \
            --out "$out/prefill_$n.json" || failed=1
    done
    ;;
whole)
    export PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True
    # 575 frame pairs of 64 tokens and 64 of text fill the recipe's context.
    python3 -m torch.distributed.run --standalone --nproc-per-node 2 -m videonsa bench train \
        --model 7B --layers 28 --tokens 36800 --parts step --sequence 1 --fsdp --no-dense \
        --repeats 2 --out "$out/train_2_whole.json" || failed=1
    ;;
*)
    echo "part $part: want tests, forward, backward, prefill, fp8, decode, peers, reading, long, baselines, train, shared or whole" >&2
    exit 2
    ;;
esac
python3 benchmarks/targets.py "$out" || failed=1
exit "$failed"
