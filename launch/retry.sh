#!/usr/bin/env bash
# One machine's share of a job: runs a command, and again from the last checkpoint when it crashed.
#
#   launch/retry.sh 3 .venv/bin/python experiments/pose_ohkm.py --distributed ...    # at most 3 restarts in a row
#
# Needs: bash.
# Costs: nothing.
# Resume: that is what it does; every machine of the job runs it, and when one's process dies, JAX's heartbeat ends the
#   others, so that all start again together. After a start that ran for STEADY seconds (3600) they are counted anew.
# Exit code: 0 done; 143 stopped by SIGTERM, SIGINT or SIGHUP, passed on, after saving; 2 wrong flags or input, or a
# full disk, which no restart mends; anything else is the command's own after the last restart.
set -u
steady=${STEADY:-3600}
if [[ $# -lt 2 || ! $1 =~ ^[0-9]{1,9}$ || ! $steady =~ ^[0-9]{1,9}$ ]]; then
  echo "usage: [STEADY=SECONDS] launch/retry.sh RESTARTS COMMAND..." >&2
  exit 2
fi
# In base 10, also after a 0.
retries=$((10#$1)) steady=$((10#$steady))
shift
# Restarts are one launch, in which --no-resume starts anew once. Where a scheduler starts this again, its own number is
# the launch's, which the scripts know themselves.
scheduled=${SKYPILOT_TASK_ID:-}${SLURM_JOB_ID:-}${PBS_JOBID:-}${LSB_JOBID:-}${AWS_BATCH_JOB_ID:-}
if [[ -z ${HARDMINE_LAUNCH:-} && (-t 0 || -z $scheduled${KUBERNETES_SERVICE_HOST:-}) ]]; then
  HARDMINE_LAUNCH=retry-$(date +%s)-$$-$RANDOM
  export HARDMINE_LAUNCH
fi
child=
stopped=

# shellcheck disable=SC2329  # the trap calls it
stop() {
  stopped=yes
  if [[ -n $child ]]; then
    kill -TERM "$child" 2>/dev/null
  fi
}
# Under nohup HUP stays ignored.
trap stop TERM INT HUP

# A trapped signal ends `wait` before the process has saved: wait again until it is gone.
wait_for_child() {
  while true; do
    wait "$child"
    code=$?
    kill -0 "$child" 2>/dev/null || return
  done
}

for ((restart = 0; restart <= retries; restart++)); do
  if ((restart > 0)); then
    echo "launch: exit code $code: starting again from the last checkpoint ($restart of $retries)" >&2
  fi
  started=$SECONDS
  "$@" &
  child=$!
  wait_for_child
  # 130: somebody interrupted it.
  if [[ $code -eq 0 || $code -eq 2 || $code -eq 130 || -n $stopped ]]; then
    break
  fi
  if ((SECONDS - started > steady)); then
    restart=0
  fi
done
# Kubernetes would take a machine that was told to go for one that is done.
if [[ -n $stopped && $code -eq 0 ]]; then
  code=143
fi
echo "launch: ended with exit code $code${stopped:+, stopped by a signal}" >&2
exit "$code"
