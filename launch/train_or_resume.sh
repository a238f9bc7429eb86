#!/usr/bin/env bash
# Starts a run, or goes on with it if it has a checkpoint. For schedulers that start the same command again.
#
#   launch/train_or_resume.sh RUN_DIR RECIPE [section.key=value ...]
#
# The run is in RUN_DIR. If it ended there before its first checkpoint, the next one is in RUN_DIR-2, and so on.
# The exit code is that of `rlkl train`.
set -euo pipefail

LOCK_WAIT_S=${RLKL_LOCK_WAIT_S:-120}  # four of the heartbeats that a live run gives its lock

fail() {
    printf '%s: %s\n' "$(basename "$0")" "$*" >&2
    exit 2
}

has_checkpoint() { compgen -G "$1/checkpoints/step_*" >/dev/null; }

has_steps() { [[ -s $1/metrics.jsonl ]]; }

# The lock of another machine: its owner may have died with the machine, and rlkl cannot see that from here. A live owner
# sets the time of the file again and again.
remove_dead_lock() {
    local lock=$1/run.lock before
    [[ -f $lock ]] || return 0
    ! grep -qF "\"host\": \"$(hostname)\"" "$lock" || return 0  # rlkl looks for the process itself
    before=$(stat -c %Y "$lock" 2>/dev/null) || return 0
    echo "$lock belongs to another machine; watching it for $LOCK_WAIT_S s" >&2
    sleep "$LOCK_WAIT_S"
    if [[ $(stat -c %Y "$lock" 2>/dev/null) == "$before" ]]; then
        echo "$lock shows no sign of life; removing it" >&2
        rm -f "$lock"
    fi
}

(($# >= 2)) || fail "expected RUN_DIR RECIPE [section.key=value ...]"
first=$1 recipe=$2
shift 2
[[ $first != *=* && $recipe != *=* ]] || fail "expected RUN_DIR and RECIPE before section.key=value, not $first $recipe"

run=$first number=1
while has_steps "$run" && ! has_checkpoint "$run"; do
    number=$((number + 1))
    run=$first-$number
done
remove_dead_lock "$run"
if has_checkpoint "$run"; then
    exec rlkl train --resume "$run" "$@"
fi
exec rlkl train "$recipe" "run.dir=$run" "$@"
