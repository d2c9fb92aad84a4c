#!/bin/sh
# The tables of docs/results and the transfer matrix on one GPU, one process for each domain and seed. On an H100 with
# 16 processor cores it took twelve minutes, with MPS. SmolLM2's parts need `make smollm2`; without it they say so, and
# the rest continues. `--quick` goes to every command of `paper`, and the transfer matrix is left out then.
#
#   scripts/measure_on_gpu.sh                            # into docs/results and runs/
#   DEVICE=cpu OUT=DIR scripts/measure_on_gpu.sh --quick # to see that everything works
set -u
cd "$(dirname "$0")/.."
export OMP_NUM_THREADS=1 PYTHONUNBUFFERED=1 PYTHONPATH="${PYTHONPATH:-src}"
DEVICE=${DEVICE:-cuda} PYTHON=${PYTHON:-python3} LOGS=${LOGS:-runs/logs}
DOMAINS="apparel digits sketch scenes" SEEDS="0 1 2" OUT=${OUT:-docs/results}
[ $# = 0 ] || { DOMAINS="apparel digits" SEEDS="0"; }
[ $# = 0 ] || [ "$OUT" != docs/results ] || OUT=runs/quick
mkdir -p "$LOGS"

# With NVIDIA's MPS, processes that share a GPU work at the same time; without it, they take turns.
if [ "$DEVICE" = cuda ] && command -v nvidia-cuda-mps-control > /dev/null; then
    PIPES=$(mktemp -d)
    export CUDA_MPS_PIPE_DIRECTORY="$PIPES"
    nvidia-cuda-mps-control -d
    trap 'echo quit | CUDA_MPS_PIPE_DIRECTORY=$PIPES nvidia-cuda-mps-control; rm -rf "$PIPES"' EXIT
    timeout 60 "$PYTHON" -c "import torch; torch.ones(1, device='cuda')" || unset CUDA_MPS_PIPE_DIRECTORY
fi

run() { # NAME of the log, then a command
    log="$LOGS/$1.log"; shift
    "$PYTHON" -m "$@" --device "$DEVICE" > "$log" 2>&1 || echo "failed: see $log"
}

matrix() { # NAME of the log, then what to adapt to
    name="transfer-$1"; shift
    run "$name" craft transfer --surrogates craft-tiny/qwen2 craft-tiny/llama craft-tiny/smollm2 --limit 300 \
        --work runs/transfer "$@"
}

TABLES="table7 table3 table1 table5 table2 fig2 table6 fig5 pruning-ablation"
RECORDS="open-questions lambdas pruning-choices"

# Each process trains and measures one domain and seed; they share the work folder. Their pages go to runs/parts.
for domain in $DOMAINS; do
    for seed in $SEEDS; do
        part="$domain-$seed"
        {
            run "tables-$part" paper $TABLES "$@" --domains "$domain" --seeds "$seed" --out "runs/parts/$part" --dtype float32
            run "records-$part" paper.development $RECORDS "$@" --domains "$domain" --seeds "$seed" \
                --out "runs/parts/$part" --dtype float32
        } &
        [ $# != 0 ] || matrix "$part" --data "$domain" --seeds "$seed" &
    done
done
wait
# All cells are there now: these commands only put the tables together.
run tables paper $TABLES "$@" --out "$OUT" --dtype float32
run records paper.development $RECORDS "$@" --out "$OUT" --dtype float32
[ $# != 0 ] || matrix all --data $DOMAINS --seeds 0,1,2 --out "$OUT/transfer"
