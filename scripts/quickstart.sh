#!/bin/sh
# From a fresh clone to a transcript, with nothing but Python >= 3.9:
#
#   scripts/quickstart.sh                          tiny.en, the example recording
#   scripts/quickstart.sh talk.mp3                 tiny.en, your recording (-: standard input)
#   scripts/quickstart.sh --model NAME [AUDIO...]  another model: base, large-v3, ...; a Hugging Face
#                                                  id; a local checkpoint or engine
#
# Makes .venv, fetches tiny.en, exports it (int8) to the engine cache and transcribes. Whatever is
# already there and whole is used as it is, so it can be stopped at any point and run again.
# PYTHON=... picks the Python.
set -eu

usage() { sed -n '2,/^set/s/^# \{0,1\}//p' "$0"; }

caller=$PWD
cd "$(dirname "$0")/.."
. scripts/venv.sh

model=
while [ $# -gt 0 ]; do
    case $1 in
        -h | --help) usage; exit 0 ;;
        --model)
            if [ $# -lt 2 ]; then echo "error: --model needs a name, a model id or a path" >&2; exit 2; fi
            model=$2
            shift 2
            ;;
        --model=*) model=${1#--model=}; shift ;;
        --) shift; break ;;
        -?*) echo "error: unknown option $1" >&2; usage >&2; exit 2 ;;
        *) break ;;
    esac
done
if [ $# -eq 0 ]; then set -- "$PWD/examples/jfk.flac"; fi
n=$#
while [ "$n" -gt 0 ]; do # recordings are named from where the caller stands
    case $1 in
        /* | -) set -- "$@" "$1" ;;
        *) set -- "$@" "$caller/$1" ;;
    esac
    shift
    n=$((n - 1))
done
case ${WHISPER_OPT_CACHE:-/} in
    /*) ;;
    *) export WHISPER_OPT_CACHE="$caller/$WHISPER_OPT_CACHE" ;;
esac

# Names and ids are fetched from the hub, which takes one more extra; an environment with it will do
# for tiny.en too.
extras="cpu,audio,export"
if [ -n "$model" ] || venv_is_whole .venv ".[$extras,hf]"; then extras="$extras,hf"; fi
if [ -n "${PYTHON:-}" ] || ! venv_is_whole .venv ".[$extras]"; then
    python=$(any_python)
    make_venv .venv "$python" ".[$extras]"
fi
make_kernels .venv/bin/python

if [ -z "$model" ]; then
    source=models/tiny.en
    checked=models/.tiny.en.checked # when all of it was found as it should be
    if [ ! -e "$checked" ] || [ ! -d $source ] || [ -n "$(find $source/ -newer "$checked")" ]; then
        .venv/bin/python scripts/get_model.py tiny.en >/dev/null
        : >"$checked"
    fi
else
    source=$model
    if folder=$(cd "$caller" && cd "$(dirname "$model")" 2>/dev/null && pwd) &&
        [ -e "$folder/$(basename "$model")" ]; then
        source=$folder/$(basename "$model")
    fi
fi
exec .venv/bin/whisper-opt transcribe "$source" "$@"
