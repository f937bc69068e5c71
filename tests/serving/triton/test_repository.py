"""Writing a model repository."""

from __future__ import annotations

import ast
import json
import shutil
from pathlib import Path

import pytest

from tests.support.watched_backend import engine
from whisper_opt import LoadOptions, OptionError, WhisperOptError
from whisper_opt.cli.main import main
from whisper_opt.serving.triton import repository
from whisper_opt.serving.triton.repository import config_text, model_text
from whisper_opt.serving.triton.settings import PARAMETER, Settings


@pytest.fixture(scope="module")
def source() -> str:
    return str(engine().path)


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_a_model_is_config_class_and_engine(
    source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["triton-repository", f"mine={source}", str(tmp_path), "--threads", "2"]
    assert main([*arguments, "--max-batch", "4"]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'mine'}\n"
    files = {f"1/engine/{name}" for name in names(Path(source))}
    assert names(tmp_path / "mine") == {"config.pbtxt", "1/model.py", *files}
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    text = (tmp_path / "mine" / "config.pbtxt").read_text("utf-8")
    assert Settings.read(parsed(text)) == Settings(LoadOptions(device="cpu", threads=2), 4)
    assert main([*arguments]) == 2
    assert "is there already; give --overwrite" in capsys.readouterr().err
    (tmp_path / "mine" / "old").touch()
    assert main([*arguments, "--overwrite"]) == 0
    assert not (tmp_path / "mine" / "old").exists()


def parsed(config: str) -> dict[str, object]:
    """The parameter of a configuration, as Triton gives it to the instances."""
    line = next(line for line in config.splitlines() if "string_value" in line)
    value = line.partition("string_value: ")[2].rpartition("}")[0]
    return {"parameters": {PARAMETER: {"string_value": json.loads(value)}}}


def test_instances_on_gpus_have_their_index() -> None:
    settings = Settings(LoadOptions(device="tensorrt"), instances=2, gpus=(0, 3))
    text = config_text(settings)
    assert "instance_group [ { count: 2 kind: KIND_GPU gpus: [0, 3] } ]" in text
    assert "max_batch_size: 0\n" in text
    assert "\ndynamic_batching" not in text
    read = Settings.read(parsed(text))
    assert read.on("KIND_GPU", "3") == LoadOptions(device="tensorrt", device_index=3)
    assert read.on("CPU", "0") == LoadOptions(device="cpu")
    assert Settings().on("GPU", "1") == LoadOptions(device="cuda", device_index=1)


def test_directories_come_before_those_of_the_server() -> None:
    text = model_text(['/opt/with "quotes"'])
    assert ast.unparse(ast.parse(text)).count('/opt/with "quotes"') == 1
    assert ast.parse(model_text())
    assert "sys.path" not in model_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gpus", "0"], "GPUs are given, but device is 'cpu'; give --device cuda or"),
        (["--instances", "2"], "2 instances on the CPU would each use all cores; give --threads"),
        (["--instances", "0"], "instances is 0; expected at least 1"),
        (["--device", "cuda", "--device-index", "1"], "Triton places the instances; give --gpus"),
    ],
)
def test_contradictions_are_refused(
    arguments: list[str],
    message: str,
    source: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["triton-repository", source, str(tmp_path / "models"), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "models").exists()


def test_names_are_checked_before_any_work(
    source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(tmp_path / "models")
    assert main(["triton-repository", f"a={source}", f"a={source}", folder]) == 2
    assert "two models have the name 'a'" in capsys.readouterr().err
    assert main(["triton-repository", f"a:b={source}", folder]) == 2
    assert "'a:b' cannot be the name of a model in Triton" in capsys.readouterr().err
    assert main(["triton-repository", str(tmp_path), folder]) == 1
    assert "there is no engine at" in capsys.readouterr().err
    assert repository.model_name("openai/whisper-base@main") == "whisper-base"


def test_a_failure_leaves_nothing(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*paths: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copytree", full)
    with pytest.raises(WhisperOptError, match=r"cannot write .*: .*No space left"):
        repository.write_model(Path(source), tmp_path, "a", Settings())
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(OptionError, match="cannot be the name"):
        repository.write_model(Path(source), tmp_path, "../a", Settings())
