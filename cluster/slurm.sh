#!/bin/bash
# One job of the pipeline on Slurm: Ray over all nodes of the allocation, for as long as the job runs.
#
#     sbatch cluster/slurm.sh jobs/chain.py --run.storage /shared/runs --data.path /shared/UCF-101
#
# Assumes a home directory and a storage folder that all nodes share, and the packages of requirements.lock in
# ~/framebridge-venv (README.md). A job that is pre-empted or out of time is requeued and goes on where it stopped.
#SBATCH --job-name=framebridge
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:TERM@300
set -euo pipefail

if [ $# -eq 0 ] || [ ! -f "$1" ]; then
  echo "slurm.sh: give the job and its settings, from the project's folder: sbatch cluster/slurm.sh jobs/chain.py ..." >&2
  exit 2
fi
export PATH="$HOME/framebridge-venv/bin:$PATH" PYTHONPATH="$PWD" PYTHONUNBUFFERED=1
export RAY_AUTH_MODE=token RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=600
(umask 077; ray get-auth-token --generate > /dev/null)   # in the shared home, so that every node has it

head="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)"
head_address="$(srun --nodes=1 --ntasks=1 --nodelist="$head" hostname --ip-address | awk '{print $1}')"
port=$((10000 + SLURM_JOB_ID % 20000))                   # keeps two jobs of one user apart

# 300 s before the time ends, stop the job's step and requeue the job
trap 'scancel --signal=TERM "$SLURM_JOB_ID.1" || true; wait; scontrol requeue "$SLURM_JOB_ID"' TERM

srun --nodes="$SLURM_NNODES" --ntasks="$SLURM_NNODES" --ntasks-per-node=1 \
  ray symmetric-run --address "$head_address:$port" --min-nodes "$SLURM_NNODES" \
  --num-cpus="${SLURM_CPUS_PER_TASK}" --num-gpus="${SLURM_GPUS_ON_NODE:-0}" \
  --dashboard-host=127.0.0.1 \
  -- python "$@" &
wait $!
