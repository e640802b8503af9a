#!/bin/sh
# Train under Slurm:
#
#   tools/slurm_train.sh PARTITION JOB CONFIG [WORK_DIR] [options of train.py]
#
# A fourth argument that starts with a dash is an option, not a folder. Environment: GPUS (8),
# GPUS_PER_NODE (8, or GPUS if fewer), CPUS_PER_TASK (5), SRUN_ARGS, PYTHON.
set -eu

if [ $# -lt 3 ]; then
    echo "usage: $0 PARTITION JOB CONFIG [WORK_DIR] [options of train.py]" >&2
    exit 2
fi
partition=$1
job=$2
config=$3
shift 3
case ${1:--} in
    -*) ;;
    *) work_dir=$1; shift; set -- --work-dir "$work_dir" "$@" ;;
esac

gpus=${GPUS:-8}
gpus_per_node=${GPUS_PER_NODE:-$((gpus < 8 ? gpus : 8))}
tools=$(cd "$(dirname "$0")" && pwd)
PYTHONPATH=$(dirname "$tools")${PYTHONPATH:+:$PYTHONPATH}
export PYTHONPATH

# SRUN_ARGS holds several arguments and is meant to be split.
# shellcheck disable=SC2086
exec srun -p "$partition" \
    --job-name="$job" \
    --gres="gpu:$gpus_per_node" \
    --ntasks="$gpus" \
    --ntasks-per-node="$gpus_per_node" \
    --cpus-per-task="${CPUS_PER_TASK:-5}" \
    --kill-on-bad-exit=1 \
    ${SRUN_ARGS:-} \
    "${PYTHON:-python}" -u "$tools/train.py" "$config" --launcher slurm "$@"
