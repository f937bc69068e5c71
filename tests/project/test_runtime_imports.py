"""The runtime works without the packages that exports need."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.engines import random_engine, sharp_checkpoint
from tests.support.models import random_dims
from whisper_opt.export import export

ROOT = Path(__file__).parents[2]
BLOCKED = (
    "torch",
    "transformers",
    "onnx",
    "optimum",
    "tensorrt",
    "tensorrt_rtx",
    "whisper",
    "safetensors",
    "huggingface_hub",
)

# Blocks the packages, and records the imports of them.
PREAMBLE = """
import json, sys

class Block:
    requested = []

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in BLOCKED:
            self.requested.append(name)
            raise ImportError(f"No module named {name!r}")

sys.meta_path.insert(0, Block())
assert not any(name.split(".")[0] in BLOCKED for name in sys.modules)
"""

TRANSCRIBE = """
import numpy as np
import whisper_opt

after_import = sorted(sys.modules)
noise = np.random.default_rng(0).standard_normal(32_000).astype(np.float32) * 0.1
options = dict(max_new_tokens=8, no_speech_threshold=None, vad="off")
with whisper_opt.Whisper.load(sys.argv[1], threads=1) as model:
    found = model.transcribe(noise, **options)
    languages = model.detect_language(noise)
print(json.dumps({
    "after_import": after_import,
    "modules": sorted(name for name, module in sys.modules.items() if module is not None),
    "requested": Block.requested,
    "tokens": sum(len(segment.tokens) for segment in found),
    "segments": len(found.segments),
    "duration": found.duration,
    "language": found.language,
    "languages": len(languages),
}))
"""


def run(script: str, *arguments: str, blocked: tuple[str, ...] = BLOCKED) -> Any:
    """The JSON output of ``script``, run with the packages ``blocked`` blocked."""
    program = f"BLOCKED = {blocked!r}\n{PREAMBLE}\n{script}"
    command = [sys.executable, "-W", "error", "-c", program, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_transcribes_without_export_packages(tmp_path: Path) -> None:
    engine = random_engine(tmp_path / "engine", random_dims())
    found = run(TRANSCRIBE, str(engine.path))
    loaded = {name.split(".")[0] for name in found["modules"]}
    assert not loaded & set(BLOCKED)
    assert found["requested"] == []  # not even tried
    assert {"whisper_opt", "numpy", "onnxruntime"} <= loaded
    offline = ("whisper_opt.export", "whisper_opt.export.checkpoints")
    assert not [name for name in found["modules"] if name.startswith(offline)]
    assert found["duration"] == 2.0
    assert found["segments"] >= 1
    assert found["tokens"] >= 1
    assert found["languages"] == 99
    assert len(found["language"]) == 2


def test_import_loads_no_model_runtime(tmp_path: Path) -> None:
    script = "import whisper_opt\nprint(json.dumps(sorted(sys.modules)))"
    loaded = {name.split(".")[0] for name in run(script, blocked=(*BLOCKED, "onnxruntime"))}
    assert "whisper_opt" in loaded
    assert not loaded & {*BLOCKED, "onnxruntime", "av"}


SLOW = (
    "numpy",
    "onnxruntime",
    "soundfile",
    "av",
    "scipy",
    "tiktoken",
    "ctypes",
    "logging",
    "email",
)


def test_import_is_light_and_has_every_name() -> None:
    script = """
import whisper_opt
light = sorted(sys.modules)
import types
found = {name: type(getattr(whisper_opt, name)).__name__ for name in whisper_opt.__all__}
listed = set(whisper_opt.__all__) <= set(dir(whisper_opt))
print(json.dumps([light, found, listed, hasattr(whisper_opt, "nothing"),
                  isinstance(whisper_opt.audio.vad, types.ModuleType)]))
"""
    light, found, listed, nothing, module = run(script)
    assert not {name.split(".")[0] for name in light} & set(SLOW)
    assert found.pop("__version__") == "str"
    assert set(found.values()) <= {"type", "ABCMeta", "function", "dict"}
    assert listed
    assert not nothing
    assert module


def test_the_command_imports_no_more_than_transcribing_needs() -> None:
    script = "import whisper_opt.cli.main\nprint(json.dumps(sorted(sys.modules)))"
    loaded = run(script)
    unused = ("tqdm", "onnxruntime", "tiktoken", "soundfile", "importlib.metadata", "email")
    assert "whisper_opt.transcription.model" in loaded
    assert not {*unused, "whisper_opt.backends", "whisper_opt.cli.doctor"} & {*loaded}


def test_a_missing_package_is_named() -> None:
    script = """
sys.modules["numpy"] = None
import whisper_opt
try:
    whisper_opt.Whisper
except ImportError as error:
    print(json.dumps(error.name))
"""
    assert run(script) == "numpy"


def test_transcribing_imports_nothing_for_prompts_or_devices(tmp_path: Path) -> None:
    checkpoint = dataclasses.replace(
        sharp_checkpoint(random_dims()), suppress_tokens=(1, 2), begin_suppress_tokens=(3,)
    )
    engine = export(checkpoint, tmp_path / "engine")
    found = run(TRANSCRIBE, str(engine.path), blocked=(*BLOCKED, "tiktoken"))
    assert found["requested"] == []
    assert found["tokens"] >= 1
    slow = {"tiktoken", "importlib.metadata", "concurrent.futures", "tempfile", "soundfile"}
    assert not slow & {*found["modules"]}


def test_loading_without_onnxruntime_names_the_extra(tmp_path: Path) -> None:
    engine = random_engine(tmp_path / "engine", random_dims(n_vocab=2000))
    script = """
import whisper_opt
try:
    whisper_opt.Whisper.load(sys.argv[1])
except whisper_opt.BackendUnavailable as error:
    print(json.dumps(str(error)))
"""
    said = run(script, str(engine.path), blocked=(*BLOCKED, "onnxruntime"))
    assert "ONNX Runtime is not installed" in said
    assert "pip install '.[cpu]'" in said


@pytest.mark.parametrize(
    ("package", "said"),
    [
        ("onnx", "exporting needs the onnx package"),
        ("onnxruntime", "pip install '.[cpu]'"),
    ],
)
def test_exporting_without_its_packages_names_the_extra(
    package: str, said: str, tmp_path: Path
) -> None:
    script = """
from whisper_opt import BackendUnavailable
try:
    from whisper_opt.export import export
    from tests.support.models import random_checkpoint, random_dims
    export(random_checkpoint(random_dims(n_vocab=2000)), sys.argv[1])
except BackendUnavailable as error:
    print(json.dumps(str(error)))
"""
    assert said in run(script, str(tmp_path / "engine"), blocked=(package,))
    assert list(tmp_path.iterdir()) == []
