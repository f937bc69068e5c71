"""Write a model repository for Triton.

DIR/NAME/config.pbtxt      inputs, outputs, instances
DIR/NAME/1/model.py        imports the class of this package
DIR/NAME/1/engine/         a copy of the engine, so that the repository can be moved
"""

from __future__ import annotations

import json
import re
import secrets
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from whisper_opt.core.errors import EngineError, OptionError, WhisperOptError
from whisper_opt.core.files import replace_directory, write_remedy
from whisper_opt.core.version import __version__
from whisper_opt.runtime.engine import is_engine_directory
from whisper_opt.serving.triton.requests import INPUTS
from whisper_opt.serving.triton.settings import ENGINE, PARAMETER, Settings

__all__ = ["OUTPUTS", "check_name", "config_text", "model_name", "model_text", "write_model"]

OUTPUTS = {
    "text": "text of the segment; if stream is false, of the recording",
    "segment": "the segment, a JSON object",
    "transcript": "in the last response: the transcript, as transcribe --format json writes it",
}
"""Meaning of the outputs by name; each is text, and a response has those that it has to say."""

_MODEL = '''\
"""A speech recognition model; written by whisper-opt triton-repository."""

{paths}from whisper_opt.serving.triton.model import TritonPythonModel  # noqa: E402, F401
'''
_PATHS = """\
import site
import sys

server_path, sys.path[:] = list(sys.path), []
for folder in {folders}:
    site.addsitedir(folder)
sys.path += server_path  # last: what is there may be of other versions

"""


def model_name(name: str) -> str:
    """The name of a model in Triton: the last part of a hub id, without a revision."""
    return name.rpartition("/")[2].partition("@")[0]


def check_name(name: str) -> None:
    """Refuse names that are no directory names and parts of addresses everywhere.

    Raises:
        OptionError: it is one.
    """
    if not re.fullmatch(r"\w[\w.-]{0,99}", name, re.ASCII):
        raise OptionError(
            f"{name!r} cannot be the name of a model in Triton; expected letters, digits and _ . -:"
            " give NAME=MODEL"
        )


def model_text(python_path: Sequence[str] = ()) -> str:
    """The text of ``model.py``; directories are added to the path of Triton's Python."""
    paths = _PATHS.format(folders=json.dumps(list(python_path))) if python_path else ""
    return _MODEL.format(paths=paths)


def write_model(
    engine: Path,
    folder: Path,
    name: str,
    settings: Settings,
    *,
    python_path: Sequence[str] = (),
    overwrite: bool = False,
) -> Path:
    """Write a model into a repository; it is there whole or not at all.

    Args:
        engine: the engine directory, which is copied.
        folder: the repository, which is created.
        name: name of the model.
        settings: how its instances run.
        python_path: directories that have this package and its dependencies, if Triton's Python
            does not have them.
        overwrite: replace a model of that name.

    Returns:
        The directory of the model.

    Raises:
        EngineError: there is no engine.
        OptionError: a model of that name is there, or the name cannot be one.
        WhisperOptError: it cannot be written.
    """
    check_name(name)
    target = folder / name
    if not is_engine_directory(engine):
        raise EngineError(
            f"there is no engine at {engine}; expected an engine directory, or the name of a model"
        )
    if target.exists() and not overwrite:
        raise OptionError(f"{target} is there already; give --overwrite to replace it")
    temporary = folder / f".whisper-opt-{secrets.token_hex(8)}"
    try:
        version = temporary / "1"
        version.mkdir(parents=True)
        shutil.copytree(engine, version / ENGINE)
        (version / "model.py").write_text(model_text(python_path), encoding="utf-8")
        (temporary / "config.pbtxt").write_text(config_text(settings), encoding="utf-8")
        replace_directory(temporary, target)
    except (OSError, shutil.Error) as error:
        raise WhisperOptError(f"cannot write {target}: {error}. {_remedy(error)}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def _remedy(error: Exception) -> str:
    return write_remedy(error if isinstance(error, OSError) else OSError())


def config_text(settings: Settings) -> str:
    """The text of ``config.pbtxt``."""
    inputs = "\n".join(
        f"  {{ name: {json.dumps(name)} data_type: {kind} dims: [ -1 ] optional: true }}"
        f"{_comma(name, INPUTS)}  # {meaning}"
        for name, (kind, meaning) in INPUTS.items()
    )
    outputs = "\n".join(
        f"  {{ name: {json.dumps(name)} data_type: TYPE_STRING dims: [ 1 ] }}"
        f"{_comma(name, OUTPUTS)}  # {meaning}"
        for name, meaning in OUTPUTS.items()
    )
    kind = "KIND_GPU" if settings.on_gpus else "KIND_CPU"
    gpus = f" gpus: {json.dumps(list(settings.gpus))}" if settings.gpus else ""
    return f"""\
# Written by whisper-opt triton-repository {__version__}.
backend: "python"

# A request may be answered by any number of responses: its segments as they are decoded.
model_transaction_policy {{ decoupled: true }}

# No batches of Triton, and no dynamic_batching. An instance puts the windows of all requests that
# it has into one batch, and a new request joins at the next step. A batch of Triton would wait for
# requests to arrive together, and end with its slowest one.
max_batch_size: 0

# One recording is needed: one of these, or the parameter audio_base64. Options of transcription are
# parameters of the request.
input [
{inputs}
]
output [
{outputs}
]

# Each instance is a process with a copy of the model and a batch of its own. Prefer one instance
# with a larger max_batch to several on the same cores or GPU.
instance_group [ {{ count: {settings.instances} kind: {kind}{gpus} }} ]

parameters {{
  key: {json.dumps(PARAMETER)}
  value: {{ string_value: {json.dumps(settings.to_json())} }}
}}
"""


def _comma(name: str, names: Iterable[str]) -> str:
    return "" if name == list(names)[-1] else ","
