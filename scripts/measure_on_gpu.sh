#!/bin/sh
# The tables of docs/results and the transfer matrix on one GPU, many processes side by side. On an H100 with 16
# processor cores it took twelve minutes, with MPS; SmolLM2's parts want `make smollm2` (or leave them out: they
# say so, and the rest goes on). Arguments go to `craft reproduce`; with any, the matrix is left out.
#
#   scripts/measure_on_gpu.sh                                     # into docs/results and runs/
#   DEVICE=cpu JOBS=2 scripts/measure_on_gpu.sh --quick --out DIR # to see that all works
set -u
cd "$(dirname "$0")/.."
export OMP_NUM_THREADS=1 PYTHONUNBUFFERED=1 PYTHONPATH="${PYTHONPATH:-src}"
DEVICE=${DEVICE:-cuda} JOBS=${JOBS:-12} PYTHON=${PYTHON:-python3} LOGS=${LOGS:-runs/logs}
mkdir -p "$LOGS"

# NVIDIA's MPS: processes that share a GPU work at the same time, not in turns. Where it does not serve, in turns.
if [ "$DEVICE" = cuda ] && command -v nvidia-cuda-mps-control > /dev/null; then
    PIPES=$(mktemp -d)
    export CUDA_MPS_PIPE_DIRECTORY="$PIPES"
    nvidia-cuda-mps-control -d
    trap 'echo quit | CUDA_MPS_PIPE_DIRECTORY=$PIPES nvidia-cuda-mps-control; rm -rf "$PIPES"' EXIT
    timeout 60 "$PYTHON" -c "import torch; torch.ones(1, device='cuda')" || unset CUDA_MPS_PIPE_DIRECTORY
fi

reproduce() { # NAME: of the log; experiments; the script's arguments
    log="$LOGS/$1.log"; shift
    "$PYTHON" -m craft reproduce "$@" --device "$DEVICE" --dtype float32 --jobs "$JOBS" > "$log" 2>&1 \
        || echo "failed: see $log"
}

matrix() { # NAME: of the log; what to adapt to
    log="$LOGS/transfer-$1.log"; shift
    "$PYTHON" -m craft transfer --surrogates craft-tiny/qwen2 craft-tiny/llama craft-tiny/smollm2 --limit 300 \
        --work runs/transfer --device "$DEVICE" "$@" > "$log" 2>&1 || echo "failed: see $log"
}

# The encoders that most experiments share come first; then nothing that runs at once trains the same.
reproduce table7 table3 table7 "$@"
reproduce table1 table1 "$@" &
reproduce table5 table5 open-questions "$@" &
reproduce table2 table2 fig2 "$@" &
wait
reproduce table6 table6 lambdas "$@" &
reproduce pruning fig5 pruning-ablation pruning-choices "$@" &
if [ $# = 0 ]; then
    for data in apparel digits sketch scenes; do
        for seed in 0 1 2; do matrix "$data-$seed" --data "$data" --seeds "$seed" & done
    done
fi
wait
[ $# != 0 ] || matrix all --data apparel digits sketch scenes --seeds 0,1,2 --out docs/results/transfer
