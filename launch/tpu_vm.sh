#!/usr/bin/env bash
# Trains on a Cloud TPU VM, or on a pod slice of many: makes or reuses it, copies, installs, starts, follows.
#
#   launch/tpu_vm.sh start --name try --zone europe-west4-b --bucket MY-BUCKET -- experiments/pose_ohkm.py --steps 700
#   launch/tpu_vm.sh log    --name try --zone europe-west4-b    # follow again; Ctrl-C leaves the training alone
#   launch/tpu_vm.sh stop   --name try --zone europe-west4-b    # all machines save and end; the VM stays, and costs
#   launch/tpu_vm.sh delete --name try --zone europe-west4-b    # ends the cost; the bucket keeps the run
#
# Flags: --type v5litepod-8 (the default; v5litepod-16 and more are slices of several machines), --spot (cheaper, may
#   be taken away), --project ID, --version RUNTIME, --retries N; --dry-run prints the commands and runs none.
# Needs: gcloud, logged in, a project with the TPU API and quota for the type in the zone, and a bucket (README.md
#   says how).
# Costs: from READY until `delete`, by the second and chip, whether it trains or not: prices at
#   https://cloud.google.com/tpu/pricing. A try of v5litepod-8 (8 chips) takes about a quarter of an hour.
# Resume: run the same `start` again. It makes the VM anew where it was preempted, and the run, which lies in the
#   bucket, goes on from its last checkpoint. Crashes are restarted on the VM, at most --retries times in a row. With
#   --no-resume every `start` begins anew, and its restarts go on.
# --workdir and --distributed are appended to the script's flags: the run lies in bucket/runs/NAME.
set -euo pipefail

die() {
  echo "error: $*" >&2
  exit 2
}

usage() {
  sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0"
}

parse() {
  name='' zone='' bucket='' project='' version='' spot='' dry_run='' type=v5litepod-8 retries=3 script=()
  [[ $# -gt 0 ]] || { usage >&2; exit 2; }
  action=$1
  shift
  while [[ $# -gt 0 ]]; do
    case $1 in
      --spot) spot=yes ;;
      --dry-run) dry_run=yes ;;
      --)
        shift
        script=("$@")
        break
        ;;
      --name | --zone | --bucket | --project | --version | --type | --retries)
        [[ $# -gt 1 && $2 != --* ]] || die "$1 needs a value"
        printf -v "${1#--}" %s "$2"
        shift
        ;;
      *) die "unknown flag $1: see launch/tpu_vm.sh --help" ;;
    esac
    shift
  done
}

check() {
  [[ $name =~ ^[a-z][-a-z0-9]*$ ]] || die "--name '$name' must be lower-case letters, digits and -"
  [[ -n $zone ]] || die "--zone is missing: gcloud compute tpus locations list prints them"
  [[ $retries =~ ^[0-9]{1,9}$ ]] || die "--retries '$retries' must be a number"
  [[ $action == start ]] || return 0
  [[ -n $bucket ]] || die "--bucket is missing: checkpoints on the VM's own disk die with it, and machines share none"
  [[ ${#script[@]} -gt 0 ]] || die "no script: give it after --, as in -- experiments/pose_ohkm.py --steps 700"
  [[ -f $root/${script[0]} ]] || die "no script ${script[0]} in $root"
  [[ " ${script[*]} " != *" --workdir"* ]] || die "--workdir is bucket/runs/$name: drop it, or choose another --name"
  bucket=${bucket#gs://}
}

runtime_of() {
  case $1 in
    v6e-*) echo v2-alpha-tpuv6e ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v2-* | v3-* | v4-*) echo tpu-ubuntu2204-base ;;
    *) die "no runtime version known for --type $1: give --version, from gcloud compute tpus tpu-vm versions list" ;;
  esac
}

run() {
  if [[ -n $dry_run ]]; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}

tpu() {
  run gcloud compute tpus tpu-vm "$1" "$name" --zone="$zone" ${project:+--project="$project"} "${@:2}"
}

on_all() {
  tpu ssh --worker=all --command="$1"
}

# Prints nothing where there is no such VM; any other failure, as of the login, ends the script.
state() {
  local answer
  if answer=$(gcloud compute tpus tpu-vm describe "$name" --zone="$zone" ${project:+--project="$project"} \
    --format='value(state)' 2>&1); then
    tail -n 1 <<<"$answer"
  elif [[ $answer != *NOT_FOUND* ]]; then
    die "$answer"
  fi
}

make() {
  local now='' runtime=$version
  [[ -n $runtime ]] || runtime=$(runtime_of "$type")
  [[ -n $dry_run ]] || now=$(state)
  case $now in
    READY) return ;;
    STOPPED) tpu start ;;
    '' | PREEMPTED | TERMINATED)
      [[ -z $now ]] || tpu delete --quiet
      tpu create --accelerator-type="$type" --version="$runtime" ${spot:+--spot} \
        --scopes=https://www.googleapis.com/auth/cloud-platform
      ;;
    *) die "$name is $now: wait until it is READY, or delete it" ;;
  esac
}

copy() {
  local archive
  archive=$(mktemp -d)/hardmine_jax.tar.gz
  # What git tracks or would: no runs, no virtual environments, no data.
  if git -C "$root" rev-parse --is-inside-work-tree >/dev/null 2>&1; then
    run bash -c "cd $(printf %q "$root") && git ls-files -z --cached --others --exclude-standard |
      tar --create --gzip --null --files-from=- --file=$archive"
  else
    run tar --create --gzip --file="$archive" --directory="$root" --exclude=./.venv --exclude=./runs \
      --exclude=__pycache__ .
  fi
  run gcloud compute tpus tpu-vm scp "$archive" "$name:hardmine_jax.tar.gz" --zone="$zone" \
    ${project:+--project="$project"} --worker=all
  rm -rf "${archive%/*}"
}

# The images bring Python 3.10, which is too old; uv fetches its own. The cache of metadata is off since every
# machine must see at once what another has written.
install() {
  on_all "set -e
    mkdir -p hardmine_jax && tar --extract --gzip --file=hardmine_jax.tar.gz --directory=hardmine_jax
    cd hardmine_jax
    python3 -m pip install --quiet --user uv
    ~/.local/bin/uv venv --quiet --allow-existing --python=3.12 .venv
    ~/.local/bin/uv pip install --quiet --python=.venv/bin/python --editable='.[train,tpu]'
    if ! command -v gcsfuse >/dev/null; then
      curl -fsSL https://packages.cloud.google.com/apt/doc/apt-key.gpg |
        sudo tee /usr/share/keyrings/cloud.google.asc >/dev/null
      echo \"deb [signed-by=/usr/share/keyrings/cloud.google.asc] https://packages.cloud.google.com/apt \\
gcsfuse-\$(lsb_release -cs) main\" | sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
      sudo apt-get -qq update && sudo apt-get -qq install -y gcsfuse
    fi
    mkdir -p bucket
    mountpoint -q bucket || gcsfuse --metadata-cache-ttl-secs=0 --metadata-cache-negative-ttl-secs=0 $bucket bucket"
}

start() {
  local command
  printf -v command '%q ' launch/retry.sh "$retries" .venv/bin/python "${script[@]}" \
    --workdir "bucket/runs/$name" --distributed
  on_all "cd hardmine_jax
    if [ -f train.pid ] && kill -0 \$(cat train.pid) 2>/dev/null; then
      echo 'error: a job runs here already: use log, or stop it first' >&2
      exit 2
    fi
    : >train.log  # Here and now: whoever follows it may come before the job has begun.
    PYTHONUNBUFFERED=1 nohup setsid $command >>train.log 2>&1 </dev/null &
    echo \$! >train.pid"
}

# Process 0 alone prints results; ends with the job.
log() {
  tpu ssh --worker=0 --command="cd hardmine_jax && tail --pid=\$(cat train.pid) --lines=+1 --follow=name train.log"
}

stop() {
  on_all "cd hardmine_jax
    if kill -TERM \$(cat train.pid) 2>/dev/null; then
      tail --pid=\$(cat train.pid) --follow /dev/null
    fi
    tail --lines=1 train.log"
}

main() {
  root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
  parse "$@"
  case $action in
    -h | --help) usage ;;
    start | log | stop | delete)
      check
      case $action in
        start)
          # Not joined by &&, which would switch `set -e` off inside of them.
          make
          copy
          install
          start
          log
          ;;
        log) log ;;
        stop) stop ;;
        delete) tpu delete ;;
      esac
      ;;
    *) die "unknown action $action: start, log, stop or delete; see launch/tpu_vm.sh --help" ;;
  esac
}

main "$@"
