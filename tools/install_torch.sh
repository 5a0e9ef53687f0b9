#!/bin/sh
# Install PyTorch's CPU build: from PyTorch's own index where it can be reached, otherwise from where pip is
# configured to look. PyPI's torch for Linux brings gigabytes of CUDA with it: it is the last resort.
#   sh tools/install_torch.sh .venv/bin/python        an installed torch is kept
set -eu
python=$1
cpu_index=https://download.pytorch.org/whl/cpu

if "$python" -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("torch") is None)'; then
    exit 0
fi

# Every place pip knows and the CPU index, asked in one go; +cpu marks a CPU build wherever it lies.
version=$("$python" -m pip index versions torch --extra-index-url "$cpu_index" --retries 1 --timeout 5 2>/dev/null |
    grep -oE '[0-9][0-9.]*\+cpu' | head -n 1) || true

if [ -n "$version" ]; then
    echo "installing torch $version"
    # Its dependencies come with ours: looked up here, each would wait for an index that does not answer.
    "$python" -m pip install -qq --no-deps --extra-index-url "$cpu_index" --retries 0 --timeout 15 "torch==$version"
elif [ "$(uname)" = Linux ]; then
    echo "PyTorch's CPU index cannot be reached and pip knows no CPU build: taking the torch it has, which may be a" \
        "CUDA build of several GB. To choose another, stop this and install it: $python -m pip install torch==..."
    "$python" -m pip install torch
else
    "$python" -m pip install -qq torch # a CPU build everywhere else
fi
