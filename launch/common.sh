# Shared by the scripts of this folder. The state of the local cluster: its token, its logs, and `env`, the exports to use it.
# The path is short because Ray puts sockets below it, and a socket's path may have 107 characters.
state=${RLKL_CLUSTER_DIR:-/tmp/rlkl-cluster-$(id -u)}
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# The environment that make install made, else what is on the PATH.
if [[ -x $root/.venv/bin/ray ]]; then bin=$root/.venv/bin; else bin=$(dirname "$(command -v ray || echo ray)"); fi
ray=$bin/ray
python=$bin/python

fail() {
    printf '%s: %s\n' "$(basename "$0")" "$*" >&2
    exit 1
}

need_ray() {
    [[ -x $ray ]] || fail "ray is not installed here; run make install, or activate the environment that has it"
}
