#!/usr/bin/env bash
#SBATCH --job-name=vitlight
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1       # as many as a node has GPUs
#SBATCH --time=24:00:00
#SBATCH --requeue                 # by Slurm itself, after a preemption or the loss of a node
#SBATCH --signal=USR1@120         # two minutes before the time limit, to all processes that srun has started
#SBATCH --open-mode=append        # one log for all attempts
#SBATCH --output=%x-%j.log

# sbatch [OPTIONS] fit.sh SETTINGS: `vitlight fit SETTINGS` on the nodes of the job, until it is done.

# On one network interface of every node that the others can reach: export GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME.
export MASTER_ADDR=${MASTER_ADDR:-$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)}
export MASTER_PORT=$((20000 + SLURM_JOB_ID % 10000))

trap : USR1  # this shell waits for the run to save
trap 'terminated=1' TERM

# --wait: when one rank has ended, the others have a minute. claim_wait_seconds: when the last attempt has not quite ended.
srun --wait=60 vitlight fit "$@" \
    --trainer.num_nodes="$SLURM_JOB_NUM_NODES" --trainer.devices="$SLURM_NTASKS_PER_NODE" --run.claim_wait_seconds=60
code=$?

# Cancelled, preempted or requeued: Slurm ends this script, and knows what becomes of the job.
[ -z "${terminated:-}" ] || sleep 600

case $code in
0 | 2 | 3 | 130) ;;  # done, bad input, diverged, interrupted
75 | 138 | 143) scontrol requeue "$SLURM_JOB_ID" ;;  # saved, start me again; USR1 or TERM came before Python did
*) # A rank died, or a node is lost and Slurm hasn't seen it yet. A run may also fail for good: not for ever, then.
    [ "${SLURM_RESTART_COUNT:-0}" -lt 20 ] && scontrol requeue "$SLURM_JOB_ID" ;;
esac
exit "$code"
