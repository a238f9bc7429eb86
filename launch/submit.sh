#!/usr/bin/env bash
# Submits a training run as a Ray job, follows its logs, and ends with the exit code of `rlkl`.
#
#   launch/submit.sh RECIPE [section.key=value ...]
#   launch/submit.sh --resume RUN_DIR
#   launch/submit.sh sweep FILE [key=value ...] [--jobs N]
#
# With RAY_ADDRESS set, the job goes to that cluster (http://head:8265 or head:6379) and this folder is uploaded with it,
# without .venv, runs and .git; name a run.dir that outlives the job. Otherwise it goes to the cluster that
# launch/local_cluster.sh started, and runs in this folder as it is.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

local_address() {
    if [[ -z $(distrust) ]] && has_env; then (source "$state/env" && echo "$RAY_ADDRESS"); fi
}

need_ray
(($# > 0)) || fail "which recipe? launch/submit.sh RECIPE [section.key=value ...]"
job=rlkl-$(date +%Y%m%d-%H%M%S)-$$
options=(--submission-id "$job")
if [[ $1 == sweep ]]; then
    (($# > 1)) || fail "which sweep? launch/submit.sh sweep FILE [key=value ...]"
    command=(-m rlkl "$@")
else
    command=(-m rlkl train "$@")
fi

if [[ -z ${RAY_ADDRESS:-} || $RAY_ADDRESS == "$(local_address)" ]]; then
    need_trust
    has_env || fail "no cluster: run launch/local_cluster.sh start, or set RAY_ADDRESS"
    source "$state/env"
    command=(bash -c 'cd "$0" && exec "$@"' "$PWD" "$python" "${command[@]}")
else
    options+=(--working-dir "$PWD" --runtime-env-json '{"excludes": ["/.venv", "/runs", "/.git", "/wandb", "__pycache__"]}')
    command=(python "${command[@]}")
fi

trap 'echo "the job goes on; stop it with: ray job stop $job" >&2' INT
"$ray" job submit "${options[@]}" -- "${command[@]}" || true
exec "$python" - "$job" <<'PYTHON'
import sys

from ray.job_submission import JobSubmissionClient

try:
    info = JobSubmissionClient().get_job_info(sys.argv[1])
except (ConnectionError, RuntimeError):  # it was never submitted, and ray has said why
    sys.exit(1)
sys.exit(0 if info.status == "SUCCEEDED" else info.driver_exit_code or 1)
PYTHON
