#!/bin/sh
# Evaluate a checkpoint on several processes of this machine, or of several machines:
#
#   tools/dist_test.sh CONFIG CHECKPOINT GPUS [options of test.py]
#
# One process per GPU; without GPUs the processes share the CPU and talk through gloo. Environment:
# NNODES, NODE_RANK, MASTER_ADDR, PORT for several machines, PYTHON for another interpreter.
set -eu

if [ $# -lt 3 ]; then
    echo "usage: $0 CONFIG CHECKPOINT GPUS [options of test.py]" >&2
    exit 2
fi
config=$1
checkpoint=$2
gpus=$3
shift 3

tools=$(cd "$(dirname "$0")" && pwd)
PYTHONPATH=$(dirname "$tools")${PYTHONPATH:+:$PYTHONPATH}
export PYTHONPATH

# torchrun would give each process one thread, which suits GPUs; on a CPU they share the cores.
if [ -z "${OMP_NUM_THREADS:-}" ] && ! command -v nvidia-smi >/dev/null 2>&1; then
    threads=$(($(getconf _NPROCESSORS_ONLN) / gpus))
    export OMP_NUM_THREADS=$((threads > 0 ? threads : 1))
fi

exec "${PYTHON:-python}" -m torch.distributed.run \
    --nnodes "${NNODES:-1}" \
    --node_rank "${NODE_RANK:-0}" \
    --master_addr "${MASTER_ADDR:-127.0.0.1}" \
    --master_port "${PORT:-29500}" \
    --nproc_per_node "$gpus" \
    "$tools/test.py" "$config" "$checkpoint" --launcher pytorch "$@"
