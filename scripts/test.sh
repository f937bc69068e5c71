#!/bin/sh
# Everything that must pass, from a fresh clone: style, types, layers and all tests, slow ones too.
#
#   scripts/test.sh [PYTEST ARGUMENTS]       for example: scripts/test.sh -m "not slow" -k audio
#
# Makes .venv-test, an environment per other Python from 3.9 to 3.13 that is found (.venv-py39, ...),
# .venv-rtx with TensorRT for RTX, 260 MB, where there are wheels of it, and .venv-triton with
# NVIDIA's tritonserver, 100 MB, where it runs, and fetches the test models. PYTHON=... picks the
# Python of .venv-test.
set -eu

cd "$(dirname "$0")/.."
. scripts/venv.sh

make_venv .venv-test "$(any_python)" ".[dev]"
make_kernels .venv-test/bin/python
.venv-test/bin/python scripts/get_model.py tiny.en base

unset WHISPER_OPT_PY39
WHISPER_OPT_PYTHONS=
pythons_verdict=
for minor in 3.9 3.10 3.11 3.12 3.13; do
    python=
    case $(python_version .venv-test/bin/python) in
        "$minor".*) python=$PWD/.venv-test/bin/python ;;
        *)
            if found=$(find_python "$minor"); then
                venv=.venv-py$(echo "$minor" | tr -d .)
                tools=
                if [ "$minor" = 3.9 ]; then tools=pytest; fi # part of the suite runs there
                # shellcheck disable=SC2086 # a list of requirements
                make_venv "$venv" "$found" ".[cpu,export]" $tools
                python=$PWD/$venv/bin/python
            fi
            ;;
    esac
    if [ -z "$python" ]; then
        pythons_verdict="$pythons_verdict $minor NOT TESTED (not found),"
        continue
    fi
    pythons_verdict="$pythons_verdict $(python_version "$python"),"
    WHISPER_OPT_PYTHONS=$WHISPER_OPT_PYTHONS${WHISPER_OPT_PYTHONS:+:}$python
    if [ "$minor" = 3.9 ]; then
        WHISPER_OPT_PY39=$python
        export WHISPER_OPT_PY39
    fi
done
export WHISPER_OPT_PYTHONS
pythons_verdict="Pythons of the README test:${pythons_verdict%,}"
echo "== $pythons_verdict"

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

unset WHISPER_OPT_TRITON
if why=$(make_triton_venv .venv-triton "$(any_python)"); then
    WHISPER_OPT_TRITON=$PWD/.venv-triton/bin/python
    export WHISPER_OPT_TRITON
    triton_verdict="Triton: tested with the server of nvidia-pytriton $triton_wheel"
else
    triton_verdict="Triton: NOT TESTED ($why)"
fi
echo "== $triton_verdict"

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

if command -v chromium >/dev/null && command -v chromedriver >/dev/null; then
    page_verdict="Page of the server: tested in $(chromium --version 2>/dev/null | cut -d' ' -f1,2)"
else
    page_verdict="Page of the server: NOT TESTED in a browser (no chromium and chromedriver)"
fi
echo "== $page_verdict"

absent=
for library in gradio ray; do # large: nothing else here needs them
    .venv-test/bin/python -c "import $library" 2>/dev/null || absent="$absent $library"
done
if [ -z "$absent" ]; then
    examples_verdict="Examples: all tested"
else
    examples_verdict="Examples and integrations: NOT TESTED:$absent (not installed)"
fi
echo "== $examples_verdict"

make --no-print-directory lint type constraints-check PY=.venv-test/bin/python
echo "== tests"
# a process takes up to 5 GB: no more than four
.venv-test/bin/python -m pytest --numprocesses=auto --maxprocesses=4 --dist=worksteal "$@"
echo "== $pythons_verdict"
echo "== $rtx_verdict"
echo "== $triton_verdict"
echo "== $openvino_verdict"
echo "== $kernels_verdict"
echo "== $page_verdict"
echo "== $examples_verdict"
