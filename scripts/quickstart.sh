#!/bin/sh
# From a fresh clone to a transcript, with nothing but Python >= 3.9:
#
#   scripts/quickstart.sh                        tiny.en, the example recording
#   scripts/quickstart.sh talk.mp3               tiny.en, your recording
#   scripts/quickstart.sh --model ID [AUDIO...]  another model: a Hugging Face id or a local checkpoint
#
# Makes .venv, fetches the model, exports the engine and transcribes. Whatever is already there and
# whole is used as it is, so it can be stopped at any point and run again. PYTHON=... picks the Python.
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
            if [ $# -lt 2 ]; then echo "error: --model needs a model id or a path" >&2; exit 2; fi
            model=$2
            shift 2
            ;;
        --model=*) model=${1#--model=}; shift ;;
        --) shift; break ;;
        -*) echo "error: unknown option $1" >&2; usage >&2; exit 2 ;;
        *) break ;;
    esac
done
if [ $# -eq 0 ]; then set -- "$PWD/examples/jfk.flac"; fi
n=$#
while [ "$n" -gt 0 ]; do # recordings are named from where the caller stands
    case $1 in
        /*) set -- "$@" "$1" ;;
        *) set -- "$@" "$caller/$1" ;;
    esac
    shift
    n=$((n - 1))
done

python=$(any_python)
make_venv .venv "$python" ".[cpu,audio,export,hf]"
make_kernels "$python"
if [ -z "$model" ]; then
    .venv/bin/python scripts/get_model.py tiny.en >/dev/null
    source=models/tiny.en
    engine=engines/tiny.en
else
    source=$model
    if folder=$(cd "$caller" && cd "$(dirname "$model")" 2>/dev/null && pwd) &&
        [ -e "$folder/$(basename "$model")" ]; then
        source=$folder/$(basename "$model")
    fi
    engine=engines/$(printf %s "$source" | sed 's|^/*||' | tr -c 'A-Za-z0-9._-' '-')
fi

if ! .venv/bin/whisper-opt inspect "$engine" >/dev/null 2>&1; then
    if [ -e "$engine" ]; then
        echo "== $engine is damaged or of another version: moved to $engine.damaged"
        rm -rf "$engine.damaged"
        mv "$engine" "$engine.damaged"
    fi
    mkdir -p engines
    echo "== exporting $source to $engine"
    .venv/bin/whisper-opt export "$source" "$engine"
fi
echo "== transcribing"
exec .venv/bin/whisper-opt transcribe "$engine" "$@"
