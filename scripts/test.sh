#!/bin/sh
# Everything that must pass, from a fresh clone: style, types, layers and all tests, slow ones too.
#
#   scripts/test.sh [PYTEST ARGUMENTS]       for example: scripts/test.sh -m "not slow" -k audio
#
# Makes .venv-test, an environment per other Python from 3.9 to 3.13 that is found (.venv-py39, ...),
# .venv-rtx with TensorRT for RTX, 260 MB, where there are wheels of it, .venv-triton with NVIDIA's
# tritonserver, 100 MB, where it runs, and .venv-gradio with Gradio, 370 MB, and fetches the test
# models and the weights of the speaker networks (81 MB). PYTHON=... picks the Python of .venv-test.
# All that is 4.3 GB; the tests need up to 4 GB more of the temporary folder, and delete it.
set -eu

cd "$(dirname "$0")/.."
. scripts/venv.sh

make_venv .venv-test "$(any_python)" ".[dev]"
make_kernels .venv-test/bin/python
.venv-test/bin/python scripts/get_model.py tiny.en base

# other_pythons DIR: environments of the other supported Pythons. Like the two functions below it
# writes what tests need to know to DIR/NAME, and what the verdict says to DIR/NAME.verdict.
other_pythons() {
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
            printf ' %s NOT TESTED (not found),' "$minor" >>"$1/pythons.verdict"
            continue
        fi
        printf ' %s,' "$(python_version "$python")" >>"$1/pythons.verdict"
        echo "$python" >>"$1/pythons"
        if [ "$minor" = 3.9 ]; then echo "$python" >"$1/py39"; fi
    done
}

other_tensorrt() {
    if tensorrt_rtx=$(find_tensorrt_rtx); then
        # shellcheck disable=SC2086 # a list of requirements
        make_venv .venv-rtx "$(any_python)" ".[cpu,export]" \
            pytest polygraphy==0.53.6 cuda-bindings~=13.0 $tensorrt_rtx
        echo "$PWD/.venv-rtx/bin/python" >"$1/rtx"
        echo "plans built with ${tensorrt_rtx#*==}" >"$1/rtx.verdict"
    else
        echo "NOT TESTED (no wheels for this system)" >"$1/rtx.verdict"
    fi
}

other_triton() {
    if why=$(make_triton_venv .venv-triton "$(any_python)"); then
        echo "$PWD/.venv-triton/bin/python" >"$1/triton"
        echo "tested with the server of nvidia-pytriton $triton_wheel" >"$1/triton.verdict"
    else
        echo "NOT TESTED ($why)" >"$1/triton.verdict"
    fi
}

other_gradio() {
    gradio=gradio==6.31.0
    python=$(any_python)
    case $(python_version "$python") in
        3.9.*) echo "NOT TESTED (Gradio needs Python 3.10)" >"$1/gradio.verdict"; return 0 ;;
    esac
    make_venv .venv-gradio "$python" ".[cpu,export]"
    # it needs an older Pillow than the plots have
    grep -v '^pillow==' "$(constraints_of "$(python_version "$python")")" >"$1/gradio.constraints"
    .venv-gradio/bin/python -m pip --disable-pip-version-check --quiet install --no-compile \
        -c "$1/gradio.constraints" "$gradio"
    echo "$PWD/.venv-gradio/bin/python" >"$1/gradio"
    echo "tested with ${gradio#*==}" >"$1/gradio.verdict"
}

other_speakers() {
    .venv-test/bin/python scripts/get_model.py speakers
    engine=$PWD/build/test-speakers
    rm -rf "$engine"
    .venv-test/bin/whisper-opt export-speakers models/speakers "$engine" >"$1/speakers.log" 2>&1 ||
        { cat "$1/speakers.log" >&2; return 1; }
    echo "$engine" >"$1/speakers"
    echo "exported from published weights" >"$1/speakers.verdict"
}

# these environments are made while style and types are checked
others=$(mktemp -d)
(
    set -e
    other_pythons "$others"
    other_tensorrt "$others"
    other_triton "$others"
    other_gradio "$others"
    other_speakers "$others"
) &
making=$!
trap 'kill "$making" 2>/dev/null || true; rm -rf "$others"' EXIT
trap 'exit 130' INT TERM

make --no-print-directory lint type constraints-check PY=.venv-test/bin/python
wait "$making"
trap 'rm -rf "$others"' EXIT

# told NAME: what a function above found; empty if it found nothing.
told() { cat "$others/$1" 2>/dev/null || true; }

WHISPER_OPT_PYTHONS=$(told pythons | paste -sd: -)
WHISPER_OPT_PY39=$(told py39)
WHISPER_OPT_RTX=$(told rtx)
WHISPER_OPT_TRITON=$(told triton)
WHISPER_OPT_GRADIO=$(told gradio)
WHISPER_OPT_SPEAKERS=$(told speakers)
export WHISPER_OPT_PYTHONS WHISPER_OPT_PY39 WHISPER_OPT_RTX WHISPER_OPT_TRITON WHISPER_OPT_GRADIO
export WHISPER_OPT_SPEAKERS
pythons_verdict="Pythons of the README test:$(told pythons.verdict | sed 's/,$//')"
rtx_verdict="TensorRT for RTX: $(told rtx.verdict)"
triton_verdict="Triton: $(told triton.verdict)"
gradio_verdict="Gradio example: $(told gradio.verdict)"
speakers_verdict="Networks of speakers: $(told speakers.verdict)"

if version=$(.venv-test/bin/python -c 'import openvino; print(openvino.__version__)' 2>/dev/null); then
    openvino_verdict="OpenVINO: tested with $version"
else
    openvino_verdict="OpenVINO: NOT TESTED (needs Python 3.10 or later)"
fi

kernels_verdict="Kernels: $(.venv-test/bin/python -c '
from whisper_opt.runtime.native import VARIANTS, supported_variants, why_no_kernels
tested, reason = supported_variants(), why_no_kernels()
others = [name for name in VARIANTS if name not in tested]
why = "this processor has none" if tested else reason
print("; ".join([
    *(["tested: " + " ".join(tested)] if tested else []),
    *(["NOT TESTED: " + " ".join(others) + f" ({why})"] if others else []),
]))')"

if command -v chromium >/dev/null && command -v chromedriver >/dev/null; then
    page_verdict="Page of the server: tested in $(chromium --version 2>/dev/null | cut -d' ' -f1,2)"
else
    page_verdict="Page of the server: NOT TESTED in a browser (no chromium and chromedriver)"
fi

if .venv-test/bin/python -c 'import ray' 2>/dev/null; then # large: nothing else here needs it
    ray_verdict="Ray: tested"
else
    ray_verdict="Ray: NOT TESTED, but with a stand-in (not installed)"
fi

verdicts() {
    for verdict in "$pythons_verdict" "$rtx_verdict" "$triton_verdict" "$openvino_verdict" \
        "$kernels_verdict" "$page_verdict" "$gradio_verdict" "$speakers_verdict" \
        "$ray_verdict"; do
        echo "== $verdict"
    done
}

verdicts
echo "== tests"
# a process takes up to 5 GB: no more than four; each has about a core, and threads of OpenBLAS that
# share one wait for each other: with one thread, an export takes two thirds of the CPU time
OPENBLAS_NUM_THREADS=1
export OPENBLAS_NUM_THREADS
.venv-test/bin/python -m pytest --numprocesses=auto --maxprocesses=4 --dist=worksteal "$@"
verdicts
