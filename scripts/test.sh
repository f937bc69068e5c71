#!/bin/sh
# Everything that must pass, from a fresh clone: style, types, layers and all tests, slow ones too.
#
#   scripts/test.sh [PYTEST ARGUMENTS]       for example: scripts/test.sh -m "not slow" -k audio
#
# Makes .venv-test (and .venv-py39 if a Python 3.9 is found, and .venv-rtx with TensorRT for RTX, 260
# MB, where there are wheels of it) and fetches the test models. PYTHON=... picks the Python of
# .venv-test.
set -eu

cd "$(dirname "$0")/.."
. scripts/venv.sh

make_venv .venv-test "$(any_python)" ".[dev]"
make_kernels .venv-test/bin/python
.venv-test/bin/python scripts/get_model.py tiny.en base

unset WHISPER_OPT_PY39
if python39=$(find_python 3.9); then
    make_venv .venv-py39 "$python39" ".[cpu,export]" pytest
    WHISPER_OPT_PY39=$PWD/.venv-py39/bin/python
    export WHISPER_OPT_PY39
    python39_verdict="Python 3.9: tested with $(python_version "$python39")"
else
    python39_verdict="Python 3.9: NOT TESTED (not found)"
fi
echo "== $python39_verdict"

unset WHISPER_OPT_RTX
if tensorrt_rtx=$(find_tensorrt_rtx); then
    # shellcheck disable=SC2086 # a list of requirements
    make_venv .venv-rtx "$(any_python)" ".[cpu,export]" \
        pytest polygraphy==0.53.6 cuda-bindings~=13.0 $tensorrt_rtx
    WHISPER_OPT_RTX=$PWD/.venv-rtx/bin/python
    export WHISPER_OPT_RTX
    rtx_verdict="TensorRT for RTX: plans built with ${tensorrt_rtx#*==}"
else
    rtx_verdict="TensorRT for RTX: NOT TESTED (no wheels for this system)"
fi
echo "== $rtx_verdict"

if version=$(.venv-test/bin/python -c 'import openvino; print(openvino.__version__)' 2>/dev/null); then
    openvino_verdict="OpenVINO: tested with $version"
else
    openvino_verdict="OpenVINO: NOT TESTED (needs Python 3.10 or later)"
fi
echo "== $openvino_verdict"

kernels_verdict="Kernels: $(.venv-test/bin/python -c '
from whisper_opt.runtime.native import VARIANTS, supported_variants, why_no_kernels
tested, reason = supported_variants(), why_no_kernels()
others = [name for name in VARIANTS if name not in tested]
why = "this processor has none" if tested else reason
print("; ".join([
    *(["tested: " + " ".join(tested)] if tested else []),
    *(["NOT TESTED: " + " ".join(others) + f" ({why})"] if others else []),
]))')"
echo "== $kernels_verdict"

make --no-print-directory lint type constraints-check PY=.venv-test/bin/python
echo "== tests"
# a process takes up to 5 GB: no more than four
.venv-test/bin/python -m pytest --numprocesses=auto --maxprocesses=4 --dist=worksteal "$@"
echo "== $python39_verdict"
echo "== $rtx_verdict"
echo "== $openvino_verdict"
echo "== $kernels_verdict"
