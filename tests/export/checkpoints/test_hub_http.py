"""Fetching from the Hugging Face hub: the real client against a hub on this machine."""

from __future__ import annotations

import importlib
import logging
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any, Callable

import numpy as np
import pytest

from tests.support.flax_write import write_flax
from tests.support.loopback_hub import LoopbackHub
from tests.support.models import random_checkpoint, random_dims
from tests.support.models_write import write_ctranslate2, write_huggingface
from whisper_opt.core.errors import CheckpointError
from whisper_opt.export.checkpoints import Checkpoint, hub_client, load_checkpoint

NAME = "someone/whisper-small.nl"
COMMITS = ["1" * 40, "2" * 40, "3" * 40]
WEIGHTS = "model.safetensors"
BIAS = "decoder.blocks.0.mlp.0.bias"

WRITERS: dict[str, Callable[[Checkpoint, Path], Path]] = {
    "safetensors-shards": lambda c, d: write_huggingface(c, d, shards=3),
    "bin": lambda c, d: write_huggingface(c, d, kind="bin"),
    "bin-shards": lambda c, d: write_huggingface(c, d, kind="bin", shards=2),
    "ctranslate2": lambda c, d: write_ctranslate2(c, d, dtype="float16"),
    "flax": lambda c, d: write_flax(c, d, dtype="float16"),
    "flax-shards": lambda c, d: write_flax(c, d, dtype="float16", shards=3),
}


@pytest.fixture(scope="module")
def models() -> list[Checkpoint]:
    """Three models that differ in their weights."""
    dims = random_dims(
        n_vocab=2000, n_audio_state=64, n_text_state=64, n_audio_layer=1, n_text_layer=1
    )
    return [random_checkpoint(dims, seed=seed) for seed in range(3)]


@pytest.fixture
def hub(loopback: LoopbackHub, models: list[Checkpoint], tmp_path: Path) -> LoopbackHub:
    """A hub with one model."""
    loopback.add(NAME, write_huggingface(models[0], tmp_path / "repository"), commit=COMMITS[0])
    return loopback


@pytest.fixture
def sharded(loopback: LoopbackHub, models: list[Checkpoint], tmp_path: Path) -> LoopbackHub:
    """A hub with one model, in two shards."""
    folder = write_huggingface(models[0], tmp_path / "repository", shards=2)
    loopback.add(NAME, folder, commit=COMMITS[0])
    return loopback


def assert_same(found: Checkpoint, wanted: Checkpoint) -> None:
    expected = wanted.tensors[BIAS].read().astype("float16")
    np.testing.assert_array_equal(found.tensors[BIAS].read(), expected)


def contents(hub: LoopbackHub, file: str) -> bytes:
    return hub.repositories[NAME].commits[COMMITS[0]][file]


def cached(tmp_path: Path, file: str = "*") -> list[Path]:
    """Files of snapshots in the client's cache."""
    return sorted(tmp_path.glob(f"hub-cache/models--*/snapshots/*/{file}"))


def blobs(tmp_path: Path) -> list[Path]:
    """Contents of files in the client's cache, without those that older clients will go on with."""
    found = sorted(tmp_path.glob("hub-cache/models--*/blobs/*"))
    return [path for path in found if path.suffix != ".incomplete"]


def client_setting(monkeypatch: pytest.MonkeyPatch, name: str, value: Any) -> None:
    monkeypatch.setattr(importlib.import_module("huggingface_hub.constants"), name, value)


class TestFiles:
    def test_one_format_is_fetched(
        self, loopback: LoopbackHub, models: list[Checkpoint], tmp_path: Path
    ) -> None:
        folder = write_huggingface(models[0], tmp_path / "repository")
        for other in ("pytorch_model.bin", "tf_model.h5", "model.fp32-00001-of-00001.safetensors"):
            (folder / other).write_bytes(b"never fetched")
        loopback.add(NAME, folder, commit=COMMITS[0])
        assert_same(load_checkpoint(NAME), models[0])
        files = ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json"]
        assert [path.name for path in cached(tmp_path)] == files

    @pytest.mark.parametrize("kind", WRITERS)
    def test_every_format(
        self, kind: str, loopback: LoopbackHub, models: list[Checkpoint], tmp_path: Path
    ) -> None:
        folder = WRITERS[kind](models[0], tmp_path / "repository")
        loopback.add(NAME, folder, commit=COMMITS[0])
        assert_same(load_checkpoint(NAME), models[0])
        names = {path.name for path in folder.iterdir()} - {"vocabulary.json", "vocabulary.txt"}
        assert {path.name for path in cached(tmp_path)} == names

    def test_second_load_transfers_nothing(self, hub: LoopbackHub) -> None:
        load_checkpoint(NAME)
        hub.forget()
        load_checkpoint(NAME, revision=COMMITS[0])
        assert hub.asked() == [f"/api/models/{NAME}/revision/{COMMITS[0]}"]

    def test_weights_come_last(self, hub: LoopbackHub) -> None:
        load_checkpoint(NAME)
        assert WEIGHTS in hub.asked()[-1]

    @pytest.mark.parametrize(
        ("files", "message"),
        [
            (["tf_model.h5"], "no weights of a known format; expected one of model.safetensors"),
            (
                ["ggml-base.en.bin", "ggml-tiny.bin"],
                "single files .ggml-base.en.bin, ggml-tiny.bin.: fetch one with `hf download"
                f" {NAME} ggml-base.en.bin --revision {COMMITS[0]} --local-dir DIR` and pass"
                " DIR/ggml-base.en.bin",
            ),
            (["tiny.pt"], "single files .tiny.pt."),
            (
                ["onnx/encoder_model.onnx", "onnx/decoder_model_merged.onnx"],
                "only graphs of Optimum: Whisper.load and whisper-opt transcribe run them",
            ),
        ],
    )
    def test_no_checkpoint(
        self, files: list[str], message: str, loopback: LoopbackHub, tmp_path: Path
    ) -> None:
        for file in files:
            path = tmp_path / "repository" / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"never fetched")
        loopback.add(NAME, tmp_path / "repository", commit=COMMITS[0])
        with pytest.raises(CheckpointError, match=message):
            load_checkpoint(NAME)
        assert cached(tmp_path) == []


class TestRevisions:
    @pytest.fixture
    def hub(self, loopback: LoopbackHub, models: list[Checkpoint], tmp_path: Path) -> LoopbackHub:
        for branch, model, commit in zip(("main", "refs/pr/7", "v1.0"), models, COMMITS):
            folder = write_huggingface(model, tmp_path / commit)
            loopback.add(NAME, folder, commit=commit, branch=branch)
        return loopback

    @pytest.mark.parametrize(
        ("revision", "which"),
        [(None, 0), ("main", 0), ("refs/pr/7", 1), ("v1.0", 2), (COMMITS[1], 1)],
    )
    def test_revision(
        self, revision: str | None, which: int, hub: LoopbackHub, models: list[Checkpoint]
    ) -> None:
        found = load_checkpoint(NAME, revision=revision)
        assert_same(found, models[which])
        assert found.source.name == (NAME if revision is None else f"{NAME}@{revision}")
        hub.stop()  # the client has recorded what the branch or tag was
        assert_same(load_checkpoint(NAME, revision=revision, local_files_only=True), models[which])

    def test_missing_revision(self, hub: LoopbackHub) -> None:
        message = rf"'{NAME}@v9' is not a local path .* no revision 'v9'; give a branch, tag"
        with pytest.raises(CheckpointError, match=message):
            load_checkpoint(NAME, revision="v9")
        with pytest.raises(CheckpointError, match="no revision '4444"):
            load_checkpoint(NAME, revision="4" * 40)


class TestBrokenTransfers:
    def test_transfer_goes_on_where_it_broke_off(
        self, hub: LoopbackHub, models: list[Checkpoint], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The client writes in parts of 10 MB: what arrived of the last one is lost."""
        client_setting(monkeypatch, "DOWNLOAD_CHUNK_SIZE", 1000)
        size = len(contents(hub, WEIGHTS))
        hub.fail(WEIGHTS, keep=30_000, times=2)
        assert_same(load_checkpoint(NAME), models[0])
        ranges = [each.range for each in hub.requests if "/cdn/" in each.path]
        assert ranges == [None, "bytes=30000-", "bytes=60000-"]
        assert hub.sent("/cdn/") == size

    def test_transfer_that_always_breaks_off(
        self, sharded: LoopbackHub, models: list[Checkpoint], tmp_path: Path
    ) -> None:
        """No part of a file appears under its name; what arrived whole is not fetched again."""
        sharded.fail("model-00002-of-00002", keep=100)
        message = rf"model-00002-of-00002\.safetensors of '{NAME}' could not be fetched .*Error"
        with pytest.raises(CheckpointError, match=message):
            load_checkpoint(NAME)
        assert cached(tmp_path, "model-00002*") == []
        assert len(blobs(tmp_path)) == len(cached(tmp_path))
        sharded.mend()
        sharded.forget()
        assert_same(load_checkpoint(NAME), models[0])
        assert not sharded.asked("model-00001-of-00002")

    def test_half_a_model_is_not_used_without_a_network(
        self, sharded: LoopbackHub, tmp_path: Path
    ) -> None:
        sharded.fail("model-00002-of-00002", status=404)
        with pytest.raises(CheckpointError, match="the server answered 404"):
            load_checkpoint(NAME)
        assert cached(tmp_path, "model-00001*")
        with pytest.raises(CheckpointError, match="there is no whole copy of it"):
            load_checkpoint(NAME, local_files_only=True)

    @pytest.mark.parametrize("file", [WEIGHTS, "config.json"])
    def test_contents_that_differ_from_the_listing(
        self, file: str, hub: LoopbackHub, models: list[Checkpoint], tmp_path: Path
    ) -> None:
        """The client compares sizes only."""
        right = contents(hub, file)
        hub.replace(right, right[:-1] + b"?")
        kind = "sha256" if file == WEIGHTS else "Git hash"
        message = rf"{file} of '{NAME}' .* arrived damaged: its {kind} is .* expected .* not kept"
        with pytest.raises(CheckpointError, match=message):
            load_checkpoint(NAME)
        assert cached(tmp_path, file) == []
        assert len(blobs(tmp_path)) == len(cached(tmp_path))
        hub.mend()
        assert_same(load_checkpoint(NAME), models[0])

    def test_contents_of_another_size(self, hub: LoopbackHub, tmp_path: Path) -> None:
        right = contents(hub, WEIGHTS)
        hub.replace(right, right[:-1])
        with pytest.raises(CheckpointError, match=rf"{WEIGHTS} of .* should be of size"):
            load_checkpoint(NAME)
        assert cached(tmp_path, WEIGHTS) == []

    def test_damage_in_the_cache(
        self, hub: LoopbackHub, models: list[Checkpoint], tmp_path: Path
    ) -> None:
        """A damaged file is refused without a network, and else fetched again."""
        load_checkpoint(NAME)
        (file,) = cached(tmp_path, WEIGHTS)
        with file.resolve().open("r+b") as stream:
            stream.seek(-1, 2)
            stream.write(b"?")
        with pytest.raises(CheckpointError, match=rf"{WEIGHTS} is damaged: its sha256"):
            load_checkpoint(NAME, local_files_only=True)
        hub.forget()
        assert_same(load_checkpoint(NAME), models[0])
        assert hub.sent("/cdn/") == len(contents(hub, WEIGHTS))


class TestRefusals:
    def test_no_such_model(self, hub: LoopbackHub) -> None:
        message = r"'someone/else' is not a local path and .*: no such model; check the spelling"
        with pytest.raises(CheckpointError, match=message):
            load_checkpoint("someone/else")
        assert len(hub.requests) == 1

    def test_restricted_model(
        self, loopback: LoopbackHub, models: list[Checkpoint], tmp_path: Path
    ) -> None:
        folder = write_huggingface(models[0], tmp_path / "repository")
        loopback.add(NAME, folder, commit=COMMITS[0], gated=True)
        with pytest.raises(CheckpointError, match=rf"{NAME}.*access is restricted.*hf auth login"):
            load_checkpoint(NAME)

    def test_file_that_is_listed_but_missing(self, hub: LoopbackHub) -> None:
        hub.lose(WEIGHTS)
        message = rf"{WEIGHTS} of '{NAME}' .*: the hub lists this file, but does not have it"
        with pytest.raises(CheckpointError, match=message):
            load_checkpoint(NAME)

    def test_name_that_the_client_refuses(self, hub: LoopbackHub) -> None:
        with pytest.raises(CheckpointError, match=r"'some--one/x' .* not the form of a hub id"):
            load_checkpoint("some--one/x")
        assert hub.requests == []

    def test_cache_that_cannot_be_written(
        self, hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "file").write_text("")
        client_setting(monkeypatch, "HF_HUB_CACHE", str(tmp_path / "file" / "cache"))
        with pytest.raises(CheckpointError, match=r"config\.json of .*cache directory by HF_HUB_C"):
            load_checkpoint(NAME)


class TestNetwork:
    def test_busy_hub_is_asked_again(self, hub: LoopbackHub, models: list[Checkpoint]) -> None:
        hub.fail("/api/models/", status=503, times=2)
        assert_same(load_checkpoint(NAME), models[0])
        assert len(hub.asked("/api/models/")) == 3

    def test_broken_listing_is_asked_for_again(
        self, hub: LoopbackHub, models: list[Checkpoint]
    ) -> None:
        hub.fail("/api/models/", keep=10, times=1)
        assert_same(load_checkpoint(NAME), models[0])
        assert len(hub.asked("/api/models/")) == 2

    def test_hub_that_stays_busy(self, hub: LoopbackHub) -> None:
        hub.fail("/api/models/", status=503)
        message = rf"'{NAME}' .*the hub answered 503 .*; try again later"
        with pytest.raises(CheckpointError, match=message):
            load_checkpoint(NAME)
        assert len(hub.requests) == 3

    @pytest.mark.parametrize("body", [b"<html>Log in to the hotel's network</html>", b"{}", b"[]"])
    def test_server_that_is_no_hub(self, body: bytes, hub: LoopbackHub) -> None:
        hub.fail("/api/models/", body=body)
        with pytest.raises(CheckpointError, match=rf"'{NAME}' .*Error: .*; check the network, or"):
            load_checkpoint(NAME)
        hub.fail("/api/models/", status=404)
        with pytest.raises(CheckpointError, match=rf"'{NAME}' .*answered 404 .* HF_ENDPOINT"):
            load_checkpoint(NAME)

    def test_silent_hub(self, hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(hub_client, "_TIMEOUTS", (0.1, 0.1, 0.1))
        hub.fail("/api/models/", silent=True)
        with pytest.raises(CheckpointError, match=rf"'{NAME}' .*Timeout.*check the network"):
            load_checkpoint(NAME)
        assert len(hub.requests) == 3

    def test_busy_file_server(self, hub: LoopbackHub, models: list[Checkpoint]) -> None:
        hub.fail(f"resolve/{COMMITS[0]}/{WEIGHTS}", method="HEAD", status=503, times=3)
        assert_same(load_checkpoint(NAME), models[0])

    def test_transfer_that_is_refused_twice(
        self, hub: LoopbackHub, models: list[Checkpoint]
    ) -> None:
        hub.fail("/cdn/", status=503, times=2)
        assert_same(load_checkpoint(NAME), models[0])
        assert len(hub.asked("/cdn/")) == 3

    def test_file_server_that_stays_busy(self, hub: LoopbackHub) -> None:
        hub.fail(f"resolve/{COMMITS[0]}/{WEIGHTS}", method="HEAD", status=503)
        message = rf"{WEIGHTS} of '{NAME}' .*the hub answered 503 .*; try again later"
        with pytest.raises(CheckpointError, match=message):
            load_checkpoint(NAME)

    def test_unreachable_host_is_asked_once(self, hub: LoopbackHub) -> None:
        hub.stop()
        with pytest.raises(CheckpointError) as caught:
            load_checkpoint(NAME, revision=COMMITS[0])
        assert hub.pauses == []
        message = str(caught.value)
        assert f"'{NAME}@{COMMITS[0]}' is not a local path and could not be fetched" in message
        assert f"`hf download {NAME} --revision {COMMITS[0]} --local-dir DIR`" in message
        assert "Whisper.load('DIR')" in message
        assert "WHISPER_OPT_CACHE" in message

    def test_unreachable_host_and_a_copy_in_the_cache(
        self, hub: LoopbackHub, models: list[Checkpoint], caplog: pytest.LogCaptureFixture
    ) -> None:
        load_checkpoint(NAME)
        hub.stop()
        with caplog.at_level(logging.WARNING, logger="whisper_opt"):
            assert_same(load_checkpoint(NAME), models[0])
        assert f"using commit {COMMITS[0]}, which is on this machine" in caplog.text
        assert hub.pauses == []

    def test_model_that_is_gone_and_a_copy_in_the_cache(
        self, hub: LoopbackHub, models: list[Checkpoint], caplog: pytest.LogCaptureFixture
    ) -> None:
        """Or one that became private, or a token that is no longer valid."""
        load_checkpoint(NAME)
        del hub.repositories[NAME]
        with caplog.at_level(logging.WARNING, logger="whisper_opt"):
            assert_same(load_checkpoint(NAME), models[0])
        assert "no such model; check the spelling (log in if it is private); using" in caplog.text

    def test_offline_client(
        self, hub: LoopbackHub, models: list[Checkpoint], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        load_checkpoint(NAME)
        hub.forget()
        client_setting(monkeypatch, "HF_HUB_OFFLINE", True)
        assert_same(load_checkpoint(NAME), models[0])
        message = "'someone/else' .*client is offline .HF_HUB_OFFLINE.*`hf download someone/else "
        with pytest.raises(CheckpointError, match=message):
            load_checkpoint("someone/else")
        assert hub.requests == []

    def test_local_files_only(self, hub: LoopbackHub, models: list[Checkpoint]) -> None:
        message = rf"'{NAME}' .*local_files_only is set.*`hf download {NAME} --local-dir DIR`"
        with pytest.raises(CheckpointError, match=message):
            load_checkpoint(NAME, local_files_only=True)
        assert hub.requests == []
        load_checkpoint(NAME)
        hub.forget()
        assert_same(load_checkpoint(NAME, local_files_only=True), models[0])
        assert hub.requests == []

    def test_command_of_the_message(
        self, hub: LoopbackHub, models: list[Checkpoint], tmp_path: Path
    ) -> None:
        """It works as it is written, but for DIR."""
        with pytest.raises(CheckpointError) as caught:
            load_checkpoint(NAME, revision=COMMITS[0], local_files_only=True)
        command = str(caught.value).split("`")[1].replace("DIR", str(tmp_path / "copy"))
        program, *arguments = shlex.split(command)
        assert program == "hf"
        subprocess.run(
            [Path(sys.executable).with_name("hf"), *arguments],
            env=hub.environment(tmp_path / "elsewhere"),
            check=True,
            capture_output=True,
            timeout=120,
        )
        assert_same(load_checkpoint(tmp_path / "copy"), models[0])
