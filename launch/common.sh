# Shared by the scripts of this folder. The state of the local cluster: its token, its logs, and `env`, the exports to use it.
# The path is short because Ray puts sockets below it, and a socket's path may have 107 characters.
state=${RLKL_CLUSTER_DIR:-/tmp/rlkl-cluster-$(id -u)}
[[ $state == /* ]] || state=$PWD/$state
while [[ $state == */ ]]; do state=${state%/}; done  # a trailing slash would hide a symbolic link from -L
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

# Why the state folder cannot be trusted; empty if it can, or if there is none. Its usual place is a folder where every
# user can make files, and what it holds is run.
distrust() {
    if [[ -L $state ]]; then
        echo "$state is a symbolic link"
    elif [[ -e $state ]]; then
        if [[ ! -d $state ]]; then
            echo "$state is not a folder"
        elif [[ ! -O $state ]]; then
            echo "$state belongs to another user"
        elif [[ -z $(find "$state" -maxdepth 0 -perm 0700) ]]; then
            echo "$state can be read or changed by other users; expected mode 0700 (chmod 700 $state)"
        fi
    fi
}

# Ends the script if the state folder cannot be trusted.
need_trust() {
    local reason
    reason=$(distrust)
    [[ -z $reason ]] || fail "$reason; refused. Set RLKL_CLUSTER_DIR to a folder of your own"
}

# Whether `env` is there as a plain file. Ask only about a folder that can be trusted.
has_env() {
    [[ -f $state/env && ! -L $state/env && -O $state/env ]]
}
