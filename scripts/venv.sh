# Sourced by quickstart.sh and test.sh with the repository root as the working directory. POSIX sh.

# The exact release of an interpreter, or failure if it does not run, is too old or cannot make
# environments. Prints "3.11.7".
python_version() {
    "$1" -c 'import sys, venv
if sys.version_info < (3, 9): sys.exit(1)
print("%d.%d.%d" % sys.version_info[:3])' 2>/dev/null
}

# find_python X.Y: path of a working interpreter of that minor version (pyenv or PATH), or failure.
find_python() {
    for candidate in "${PYENV_ROOT:-$HOME/.pyenv}"/versions/"$1".*/bin/python "python$1"; do
        case $(python_version "$candidate") in
            "$1".*) command -v "$candidate"; return 0 ;;
        esac
    done
    return 1
}

# any_python: $PYTHON, else python3, else the newest supported one; says what is wrong otherwise.
any_python() {
    if [ -n "${PYTHON:-}" ]; then
        if python_version "$PYTHON" >/dev/null; then command -v "$PYTHON"; return 0; fi
        echo "error: PYTHON=$PYTHON is not a working Python >= 3.9" >&2
        return 1
    fi
    if python_version python3 >/dev/null; then command -v python3; return 0; fi
    for minor in 3.13 3.12 3.11 3.10 3.9; do
        find_python "$minor" && return 0
    done
    echo "error: no Python >= 3.9 found; install one, or name it: PYTHON=/path/to/python $0" >&2
    return 1
}

# find_tensorrt_rtx: the requirement that brings TensorRT for RTX, or failure where it has no wheels
# (they are for Linux x86-64 with glibc 2.28 or later; the ONNX Runtime that checks the engines needs
# Python 3.11).
find_tensorrt_rtx() {
    [ "$(uname -sm)" = "Linux x86_64" ] || return 1
    "$(any_python)" -c 'import platform, sys
libc, version = platform.libc_ver()
new = [int(part) for part in version.split(".")[:2]] >= [2, 28]
sys.exit(not (libc == "glibc" and new and sys.version_info >= (3, 11)))' || return 1
    echo tensorrt-rtx-cu13==1.7.1.116
}

# make_kernels PYTHON: compiles the kernels beside their sources, unless that was done since they
# were last changed; says so where there is no compiler, which is no failure.
make_kernels() {
    case $(uname -s) in
        Darwin) library=whisper_opt/runtime/native/libwhisper_opt.dylib ;;
        *) library=whisper_opt/runtime/native/libwhisper_opt.so ;;
    esac
    if [ -e "$library" ] &&
        [ -z "$(find hatch_build.py whisper_opt/runtime/native/*.[ch] -newer "$library")" ]; then
        return 0
    fi
    echo "== compiling kernels"
    "$1" hatch_build.py || echo "== not compiled: 8-bit engines will be slower"
}

# constraints_of RELEASE: the constraints file of a Python, if there is one.
constraints_of() {
    constraints=constraints/py$(echo "$1" | cut -d. -f1,2 | tr -d .).txt
    if [ -f "$constraints" ]; then echo "$constraints"; fi
}

# venv_key RELEASE REQUIREMENT...: what an environment is made from; the paths of an editable
# installation are part of it.
venv_key() {
    release=$1
    shift
    constraints=$(constraints_of "$release")
    # shellcheck disable=SC2086 # a list of file names without blanks
    echo "$release $constraints $* $(cat pyproject.toml $constraints | cksum) $PWD"
}

# venv_is_whole DIR REQUIREMENT...: whether make_venv made DIR from this; starts no Python.
venv_is_whole() {
    made=$(cat "$1/.whisper-opt-done" 2>/dev/null) && [ -x "$1/bin/python" ] || return 1
    shift
    [ "$made" = "$(venv_key "${made%% *}" "$@")" ]
}

# make_venv DIR PYTHON REQUIREMENT...: an environment with these requirements, pinned by the
# constraints of its Python. Does nothing if DIR is already that. An interrupted one is made anew:
# .whisper-opt-venv says that DIR is ours to delete, .whisper-opt-done that it is whole, and as what.
# A DIR that was not made here is installed into and never deleted.
make_venv() {
    venv=$1 python=$2
    shift 2
    if [ -d "$venv" ] && [ ! -e "$venv/.whisper-opt-venv" ] && ! rmdir "$venv" 2>/dev/null; then
        python=$venv/bin/python
        if ! python_version "$python" >/dev/null; then
            echo "error: $venv exists, was not made by this project and holds no working" \
                "Python >= 3.9: move it away and run this again" >&2
            return 1
        fi
    fi
    release=$(python_version "$python")
    constraints=$(constraints_of "$release")
    key=$(venv_key "$release" "$@")
    set -- -e "$@"
    if [ -n "$constraints" ]; then set -- -c "$constraints" "$@"; fi
    if [ "$(cat "$venv/.whisper-opt-done" 2>/dev/null)" = "$key" ] &&
        "$venv/bin/python" -c 'import whisper_opt' 2>/dev/null; then
        return 0
    fi
    if [ -e "$venv/.whisper-opt-venv" ]; then
        case $(cat "$venv/.whisper-opt-done" 2>/dev/null) in
            "$release "*) ;;       # whole, of this Python: brought up to date in place
            *) rm -rf "$venv" ;;   # half made, or of another Python
        esac
    fi
    echo "== installing $* into $venv (Python $release)"
    if [ ! -d "$venv" ]; then
        mkdir "$venv"
        : >"$venv/.whisper-opt-venv"
        "$python" -m venv "$venv"
    fi
    rm -f "$venv/.whisper-opt-done"
    # --no-compile: 40 MB less; what is imported is compiled then
    "$venv/bin/python" -m pip --disable-pip-version-check --quiet install --no-compile "$@" || return
    echo "$key" >"$venv/.whisper-opt-done.partial"
    mv "$venv/.whisper-opt-done.partial" "$venv/.whisper-opt-done"
}

# make_triton_venv DIR PYTHON: an environment with a tritonserver, its client, and what whisper_opt
# needs at run time, with the numpy 1 that this server was built for. Does nothing if it is there.
# Prints why it fails: no wheel for this system, or libraries that the server does not find.
triton_wheel=0.7.0
make_triton_venv() {
    venv=$1
    if [ "$(uname -sm)" != "Linux x86_64" ]; then echo "no wheel for this system"; return 1; fi
    release=$(python_version "$2")
    key="$release $triton_wheel numpy-1.26.4"
    if [ "$(cat "$venv/.whisper-opt-done" 2>/dev/null)" != "$key" ]; then
        echo "== installing tritonserver into $venv (Python $release)" >&2
        if [ -d "$venv" ] && [ ! -e "$venv/.whisper-opt-venv" ]; then
            echo "$venv exists and was not made by this project: move it away"
            return 1
        fi
        rm -rf "$venv"
        mkdir "$venv"
        : >"$venv/.whisper-opt-venv"
        "$2" -m venv "$venv" || return 1
        pip="$venv/bin/python -m pip --disable-pip-version-check --quiet install --no-compile"
        if ! $pip "numpy==1.26.4" "tritonclient[grpc]" onnxruntime platformdirs soundfile soxr \
            tiktoken tqdm >&2 || ! $pip --no-deps "nvidia-pytriton==$triton_wheel" >&2; then
            echo "its packages cannot be installed"
            return 1
        fi
        echo "$key" >"$venv/.whisper-opt-done"
    fi
    site=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    libraries=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_config_var("LIBDIR"))')
    stub=$site/pytriton/tritonserver/python_backend_stubs/${release%.*}/triton_python_backend_stub
    if ! linked=$(LD_LIBRARY_PATH=$site/nvidia_pytriton.libs:$libraries:${LD_LIBRARY_PATH:-} \
        ldd "$stub" "$site/pytriton/tritonserver/bin/tritonserver" 2>&1); then
        echo "ldd cannot read the server"
        return 1
    fi
    missing=$(echo "$linked" | sed -n 's/^[[:space:]]*\([^ ]*\) => not found$/\1/p' | head -n 1)
    if [ -n "$missing" ]; then echo "the server does not find $missing"; return 1; fi
}
