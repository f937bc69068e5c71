"""Frozen applications: the PyInstaller hook, and messages if files are missing."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest
from make_constraints import read_project

from whisper_opt.audio.vad import network
from whisper_opt.core import pyinstaller as _pyinstaller
from whisper_opt.core.errors import BackendUnavailable
from whisper_opt.core.pyinstaller import frozen
from whisper_opt.runtime.native import LIBRARY


def hook() -> dict[str, Any]:
    """The variables of the hook after running it."""
    (folder,) = _pyinstaller.hooks()
    (path,) = Path(folder).glob("hook-*.py")
    assert path.name == "hook-whisper_opt.py"  # named after the package
    return runpy.run_path(str(path))


def test_the_entry_point_names_the_hooks() -> None:
    entry = read_project()["entry-points"]["pyinstaller40"]
    assert entry == {"hook-dirs": "whisper_opt.core.pyinstaller:hooks"}


def test_data_files_have_the_right_folder() -> None:
    found = hook()["datas"]
    assert all(Path(source).is_file() for source, _ in found)
    model = network._model_path()
    assert (str(model), "whisper_opt/audio/vad") in found
    assert any(Path(source).name == "LICENSE.silero-vad" for source, _ in found)


def test_versions_can_still_be_read() -> None:
    folders = [folder for source, folder in hook()["datas"] if source.endswith("METADATA")]
    assert any(folder.startswith("onnxruntime") for folder in folders)
    assert all(folder.endswith(".dist-info") for folder in folders)


def test_kernels_are_included_if_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = [(str(LIBRARY), "whisper_opt/runtime/native")] if LIBRARY.exists() else []
    assert hook()["binaries"] == expected
    monkeypatch.setattr(frozen, "_PACKAGE", tmp_path)
    assert frozen.binary_files() == []


def test_modules_imported_on_first_use_are_included() -> None:
    assert "onnxruntime" in hook()["hiddenimports"]
    assert "soundfile" in hook()["hiddenimports"]


def test_a_missing_detector_is_found_before_anything_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network.require_model()
    monkeypatch.setattr(network, "_model_path", lambda: tmp_path / "silero_vad.onnx")
    with pytest.raises(BackendUnavailable, match=r"is missing; install it again: pip install"):
        network.require_model()
    monkeypatch.setattr("sys.frozen", True, raising=False)
    with pytest.raises(BackendUnavailable, match=r"frozen application: .*--collect-all"):
        network.require_model()
