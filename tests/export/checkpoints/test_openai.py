from __future__ import annotations

import importlib.machinery
import importlib.util
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.models_write import write_openai_pt, write_torch
from whisper_opt.core.errors import CheckpointError
from whisper_opt.export.checkpoints import Checkpoint, load_checkpoint


@pytest.fixture
def file(small: Checkpoint, tmp_path: Path) -> Path:
    (tmp_path / "tokenizer.json").write_text(small.tokenizer_json, encoding="utf-8")
    return write_openai_pt(small, tmp_path / "small.pt")


def test_says_only_what_the_file_says(file: Path) -> None:
    found = load_checkpoint(file)
    assert found.alignment_heads is None
    assert found.suppress_tokens is None
    assert found.begin_suppress_tokens is None
    assert (found.source.format, found.source.name) == ("openai", "small.pt")


@pytest.mark.parametrize("value", [{}, {"dims": {}}, {"dims": 1, "model_state_dict": {}}, (1,)])
def test_other_content(value: Any, file: Path) -> None:
    write_torch(file, value)
    with pytest.raises(CheckpointError, match="no dims and model_state_dict"):
        load_checkpoint(file)


def test_extra_tensors(file: Path, small: Checkpoint) -> None:
    state: dict[str, Any] = {name: tensor.read() for name, tensor in small.tensors.items()}
    content = {"dims": small.dims.to_dict(), "model_state_dict": state}
    state["decoder.mask"] = np.zeros((448, 448), np.float32)
    write_torch(file, content)
    assert "decoder.mask" not in load_checkpoint(file).tensors
    state["encoder.blocks.1.attn_ln.weight"] = np.zeros(64, np.float32)
    write_torch(file, content)
    with pytest.raises(CheckpointError, match=r"has 'encoder\.blocks\.1"):
        load_checkpoint(file)


def _no_whisper(monkeypatch: pytest.MonkeyPatch, spec: Any = None) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: spec if name == "whisper" else real(name)
    )


def test_no_tokenizer(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _no_whisper(monkeypatch)
    (file.parent / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=re.escape("OpenAI's gpt2.tiktoken")):
        load_checkpoint(file)


def test_assets_of_an_installed_whisper(
    wide: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiktoken: Path
) -> None:
    package = tmp_path / "whisper"
    (package / "assets").mkdir(parents=True)
    (package / "assets" / "multilingual.tiktoken").write_bytes(tiktoken.read_bytes())
    spec = importlib.machinery.ModuleSpec("whisper", None, is_package=True)
    spec.submodule_search_locations = [str(package)]
    _no_whisper(monkeypatch, spec)
    assert (
        '"<|nospeech|>"' in load_checkpoint(write_openai_pt(wide, tmp_path / "x.pt")).tokenizer_json
    )
