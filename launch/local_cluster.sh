#!/usr/bin/env bash
# A Ray cluster of one node on loopback, for `ray job submit` and for several runs that share a machine.
#
#   launch/local_cluster.sh start [option of `ray start` ...]    such as --num-cpus=8
#   launch/local_cluster.sh status
#   launch/local_cluster.sh stop       ends what start began, jobs included, and nothing else
#
# Set RLKL_CLUSTER_DIR to another folder, new or empty, to have a second cluster.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

GRACE_S=5  # some of Ray's processes wait for one another and outlast SIGTERM

# Every process of the cluster inherits this variable from `ray start`; that is how stop tells them from other Rays.
mark=RLKL_LOCAL_CLUSTER=$state

cluster_pids() {
    grep -lzsxF "$mark" /proc/[0-9]*/environ 2>/dev/null | cut -d/ -f3 || true
}

# Free ports for the dashboard (8265 if it can be had), its agent, and Ray's client server, so that clusters do not collide.
free_ports() {
    "$python" - <<'PYTHON'
import socket

held = []
for wanted in (8265, 0, 0):
    held.append(socket.socket())
    held[-1].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port that a past cluster held is free
    try:
        held[-1].bind(("127.0.0.1", wanted))
    except OSError:
        held[-1].bind(("127.0.0.1", 0))
print(*(s.getsockname()[1] for s in held))
PYTHON
}

marker=$state/.rlkl-cluster

# Makes the state folder, or clears one that an earlier start made. Nothing else is ever removed: a folder that holds files
# and no marker is somebody's own.
prepare_state() {
    need_trust
    [[ -d $state ]] || mkdir -m 700 "$state" || fail "cannot make $state"
    if [[ -f $marker ]]; then
        rm -rf "$state/ray" "$state/token" "$state/env" "$state/start.log"
    elif [[ -n $(ls -A "$state") ]]; then
        fail "$state holds files that this script did not make. Set RLKL_CLUSTER_DIR to a new or an empty folder"
    fi
    : >"$marker"
}

start() {
    need_ray
    [[ -z $(cluster_pids) ]] || fail "already running; launch/local_cluster.sh status shows its address"
    prepare_state
    (umask 077 && "$python" -c 'import secrets; print(secrets.token_hex(32), end="")' >"$state/token")
    local dashboard agent client
    read -r dashboard agent client < <(free_ports)
    # Without the last variable Ray replaces a loopback address by the machine's own, in the cluster and in its clients.
    local environment=(RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$state/token" RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0)
    if ! env -u RAY_ADDRESS RAY_worker_niceness=0 "$mark" "${environment[@]}" "$ray" start --head --port=0 --temp-dir="$state/ray" \
        --dashboard-host=127.0.0.1 --dashboard-port="$dashboard" --dashboard-agent-listen-port="$agent" \
        --ray-client-server-port="$client" --min-worker-port=0 --max-worker-port=0 \
        --disable-usage-stats "$@" >"$state/start.log" 2>&1; then
        cat "$state/start.log" >&2
        stop
        fail "ray start failed, as shown above"
    fi
    {
        echo "# dashboard: http://127.0.0.1:$dashboard"
        echo "export RAY_ADDRESS=$(cat "$state/ray/ray_current_cluster")"
        printf 'export %s\n' "${environment[@]}"
    } >"$state/env"
    status
}

status() {
    need_trust
    [[ -n $(cluster_pids) ]] && has_env || fail "not running"
    echo "# launch/submit.sh finds this cluster by itself; for anything else in a shell:"
    cat "$state/env"
}

stop() {
    local signal second
    for signal in TERM KILL; do
        for ((second = 0; second < GRACE_S; second++)); do
            mapfile -t pids < <(cluster_pids)
            if ((${#pids[@]} == 0)); then
                [[ -n $(distrust) || ! -f $marker ]] || rm -f "$state/env" "$state/token"
                return
            fi
            ((second > 0)) || kill -s "$signal" "${pids[@]}" 2>/dev/null || true
            sleep 1
        done
    done
    fail "processes ${pids[*]} did not end"
}

case ${1:-} in
start) start "${@:2}" ;;
status) status ;;
stop) stop ;;
*) fail "say start, status or stop" ;;
esac
