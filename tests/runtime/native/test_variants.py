"""All variants of the kernels compute the same bits; the choice of a variant and its self-test."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import hatch_build
from tests.runtime.native.test_kernels import feeds, some_rows
from tests.support.engines import sharp_checkpoint
from tests.support.golden import clip_pcm
from tests.support.models import random_dims
from tests.support.one_node import (
    attention_graph,
    conv_graph,
    cross_graph,
    head4_graph,
    head_graph,
    layer_norm_graph,
    linear4_graph,
    linear_graph,
    pack_graph,
    self_attention_graph,
    session,
)
from whisper_opt.audio.features import log_mel
from whisper_opt.core.arrays import NDArray
from whisper_opt.core.errors import BackendUnavailable, OptionError
from whisper_opt.core.options import LoadOptions
from whisper_opt.export import export
from whisper_opt.export.graphs.int4_operators import LINEARS4
from whisper_opt.export.graphs.operators import LINEARS, Operator
from whisper_opt.export.verification.verify import noise_mel
from whisper_opt.runtime import native
from whisper_opt.runtime.devices import open_backend
from whisper_opt.runtime.native import select_variant, supported_variants, why_no_kernels
from whisper_opt.runtime.onnxruntime.backend import OrtBackend
from whisper_opt.runtime.onnxruntime.graph import load_graph

ROOT = Path(__file__).parents[3]
FOLDER = Path(native.__file__).parent
KEYS = (1, 5, 128, 300)


@pytest.fixture(autouse=True)
def _restored(library: None) -> Iterator[None]:
    """Skips without the library; afterwards the usual variant is used again."""
    yield
    select_variant(os.environ.get(native.VARIABLE, ""))


def all_equal(compute: Callable[[], list[NDArray]]) -> None:
    """Every variant that this processor supports computes what the plain C code computes."""
    select_variant("generic")
    expected = compute()
    for name in supported_variants():
        select_variant(name)
        for found, wanted in zip(compute(), expected):
            np.testing.assert_array_equal(found, wanted, err_msg=name)


def outputs(model: bytes, **given: NDArray) -> list[NDArray]:
    found: list[NDArray] = session(model, kernels=True).run(None, given)
    return found


@pytest.mark.parametrize("name", native.VARIANTS)
def test_tests_run_with_every_variant(name: str) -> None:
    """The fixture ``kernels`` selects it for each test, if this processor supports it."""
    if name not in supported_variants():
        pytest.skip(f"not tested: this processor has no {native.VARIANTS[name]}")
    select_variant(name)
    assert native.variant() == name


# --- the same bits --------------------------------------------------------------------------------


@pytest.mark.parametrize("operator", LINEARS, ids=lambda operator: operator.name)
@pytest.mark.parametrize(("n_in", "n_out"), [(16, 1), (64, 70), (384, 512)])
@pytest.mark.parametrize("four_fit", [False, True])
def test_products(operator: Operator, n_in: int, n_out: int, four_fit: bool) -> None:
    model = linear_graph(operator, n_in, n_out, four_fit=four_fit)
    for n_rows in (1, 2, 3, 4, 5, 6, 7, 8, 49, 97):
        given = feeds(operator, some_rows((1, n_rows, n_in), n_rows), n_out)
        given["x"][0, 0] *= 1e30  # the first row is huge
        all_equal(lambda given=given: outputs(model, **given))  # type: ignore[misc]


@pytest.mark.parametrize("operator", LINEARS4, ids=lambda operator: operator.name)
@pytest.mark.parametrize("fault", [None, np.nan, np.inf])
def test_products_with_4_bits(operator: Operator, fault: float | None) -> None:
    for n_in, n_out in ((32, 1), (64, 70), (384, 512)):
        model = linear4_graph(operator, n_in, n_out)
        for n_rows in (1, 2, 3, 4, 5, 6, 8, 97):
            given = feeds(operator, some_rows((1, n_rows, n_in), n_rows), n_out)
            given["x"][0, 0] *= 1e30
            if fault is not None:
                given["x"][0, n_rows // 2, 5] = fault
            all_equal(lambda model=model, given=given: outputs(model, **given))  # type: ignore[misc]


@pytest.mark.parametrize("fault", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("operator", LINEARS, ids=lambda operator: operator.name)
def test_products_of_numbers_that_are_not_finite(operator: Operator, fault: float) -> None:
    given = feeds(operator, some_rows((1, 9, 64), 0), 70)
    given["x"][0, 4, 33] = fault
    all_equal(lambda: outputs(linear_graph(operator, 64, 70), **given))


def test_gelu_of_a_million_numbers() -> None:
    """The reciprocal in it is an instruction of some processors and a table in others."""
    x = np.linspace(-16, 16, 1 << 20, dtype=np.float32).reshape(1, -1, 1024)
    operator = LINEARS[3]
    given = feeds(operator, x, 16)
    all_equal(lambda: outputs(linear_graph(operator, 1024, 16), **given))


@pytest.mark.parametrize("n", [16, 64, 384])
@pytest.mark.parametrize("fault", [None, np.nan, np.inf])
def test_layer_normalization(n: int, fault: float | None) -> None:
    x = some_rows((1, 40, n), n)
    x[0, 0] *= 1e30
    if fault is not None:
        x[0, 5, 7] = fault
    all_equal(lambda: outputs(layer_norm_graph(n), x=x))


@pytest.mark.parametrize(
    ("n_channels", "n_out", "stride"), [(16, 64, 1), (80, 128, 1), (384, 64, 2)]
)
@pytest.mark.parametrize("fault", [None, np.nan, np.inf])
def test_convolutions(n_channels: int, n_out: int, stride: int, fault: float | None) -> None:
    for n_frames in (1, 2, 3, 4, 5, 6, 7, 60):
        x = some_rows((2, n_frames, n_channels), n_frames)
        x[0, 0] *= 1e30
        if fault is not None:
            x[1, n_frames // 2, 5] = fault
        all_equal(lambda x=x: outputs(conv_graph(n_channels, n_out, stride), x=x))  # type: ignore[misc]


@pytest.mark.parametrize("n", KEYS)
@pytest.mark.parametrize("fault", [None, np.nan, np.inf])
def test_attention_of_the_encoder(n: int, fault: float | None) -> None:
    rng = np.random.default_rng(n)
    qkv = (rng.standard_normal((2, n, 3 * 128)) * 3).astype(np.float32)
    added = rng.uniform(0, 4, n).astype(np.float32)
    if fault is not None:
        qkv[0, n // 2, 130] = fault  # in a key
    all_equal(lambda: outputs(attention_graph(2), qkv=qkv, added=added, by_parts=np.array(True)))


@pytest.mark.parametrize("n_queries", [1, 2, 5, 7])
def test_attention_of_the_decoder(n_queries: int) -> None:
    rng = np.random.default_rng(n_queries)
    x = (rng.standard_normal((2, 300, 128)) * 3).astype(np.float32)
    queries = rng.standard_normal((2, n_queries, 128)).astype(np.float32)
    added = np.zeros((2, 384), np.float32)
    added[:, 300:] = -1e30

    def compute() -> list[NDArray]:
        keys, key_step = outputs(pack_graph(2, "k"), x=x)
        values, value_step = outputs(pack_graph(2, "v"), x=x[:, ::-1].copy())
        steps = np.stack([key_step, value_step], 1)[:, None]
        given = {"queries": queries, "keys": keys, "steps": steps, "added": added}
        mixed = outputs(cross_graph(2, 0), values=values, **given)
        chosen = {"heads": np.array([1, 0]), "rows": np.arange(n_queries)}
        return [keys, values, *mixed, *outputs(cross_graph(2, 0, scores=True), **given, **chosen)]

    all_equal(compute)


@pytest.mark.parametrize("n_new", [1, 5, 40])
@pytest.mark.parametrize("fault", [None, np.nan, np.inf])
def test_self_attention_of_the_decoder(n_new: int, fault: float | None) -> None:
    rng = np.random.default_rng(n_new)
    qkv = (rng.standard_normal((3, n_new, 3 * 128)) * 3).astype(np.float32)
    if fault is not None:
        qkv[1, n_new // 2, 130] = fault  # in a key
    given = {"qkv": qkv, "start": np.array([0, 7, 60])}
    for name in ("key", "value"):
        given[name] = rng.standard_normal((3, 2, 100, 64)).astype(np.float32)
    all_equal(lambda: outputs(self_attention_graph(2), **given))


@pytest.mark.parametrize("n_samples", [0, 1, 300, 16_000, 50_001])
@pytest.mark.parametrize("n_mels", [1, 80, 128])
def test_log_mel(n_samples: int, n_mels: int) -> None:
    samples = some_rows((n_samples,), 0) * np.float32(0.1)

    def compute() -> list[NDArray]:
        found = log_mel(samples, n_mels)
        return [found.frames, np.array(found.silence)]

    all_equal(compute)


def test_log_mel_has_the_same_bits_on_every_machine() -> None:
    """Also on Arm, and whatever compiled the kernels."""
    digests = {}
    for n_mels in (80, 128):
        frames = log_mel(clip_pcm("en-jfk"), n_mels).frames
        digests[n_mels] = hashlib.sha256(frames.tobytes()).hexdigest()[:16]
    assert digests == {80: "11b0def5311a4af6", 128: "c643ace5ff30ff1d"}


@pytest.mark.parametrize("n_rows", [1, 2, 3, 5])
def test_the_output_head(n_rows: int) -> None:
    hidden = some_rows((n_rows, 1, 128), n_rows)
    all_equal(lambda: outputs(head_graph(128, 1000), hidden=hidden))


@pytest.mark.parametrize("n_rows", [1, 2, 3, 4, 5, 6, 7])
def test_the_output_head_with_4_bits(n_rows: int) -> None:
    hidden = some_rows((n_rows, 1, 128), n_rows)
    all_equal(lambda: outputs(head4_graph(128, 1000, 70), hidden=hidden))


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_an_engine(precision: str, tmp_path: Path) -> None:
    """Encoder, prompt and step."""
    dims = random_dims(n_vocab=2000, n_audio_state=128, n_text_state=128)
    engine = export(sharp_checkpoint(dims), tmp_path / "engine", precision=precision)
    mel = noise_mel(dims)[None, :, :800]

    def compute() -> list[NDArray]:
        backend = OrtBackend(engine, threads=1)
        encoded = backend.encode(mel)
        decoder = backend.open(encoded)
        prompt = decoder.extend(np.arange(6, dtype=np.int64)[None]).numpy()
        step = decoder.extend(np.array([[7]], np.int64)).numpy()
        decoder.close()
        return [*encoded.cross, prompt, step]

    all_equal(compute)


# --- the choice -----------------------------------------------------------------------------------


def test_sessions_keep_their_variant() -> None:
    """Selecting another one does not change those that are open."""
    model, x = linear_graph(LINEARS[0], 64, 70), some_rows((1, 5, 64), 0)
    select_variant("generic")
    runner = session(model, kernels=True)
    before = runner.run(None, {"x": x})
    select_variant("")
    assert native.variant() != "generic" or supported_variants() == ("generic",)
    np.testing.assert_array_equal(runner.run(None, {"x": x})[0], before[0])


def test_an_unknown_variant_is_refused() -> None:
    before = native.variant()
    with pytest.raises(OptionError, match="no kernels 'sse9' for this system; expected one of"):
        select_variant("sse9")
    assert native.variant() == before


def in_a_process(script: str, choice: str | None, library: Path | None = None) -> str:
    """Output of Python with ``WHISPER_OPT_KERNELS``, with another library if one is given."""
    env = {key: value for key, value in os.environ.items() if key != native.VARIABLE}
    if choice is not None:
        env[native.VARIABLE] = choice
    first = "from whisper_opt.runtime import native; from pathlib import Path\n"
    if library:
        first += f"native.LIBRARY = Path({str(library)!r})\n"
    command = [sys.executable, "-c", first + script]
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize("choice", [*native.VARIANTS, "", None])
def test_the_environment_decides(choice: str | None) -> None:
    if choice and choice not in supported_variants():
        pytest.skip(f"not tested: this processor has no {native.VARIANTS[choice]}")
    used = choice or native.variant()
    assert in_a_process("print(native.variant(), native.why_no_kernels())", choice) == (
        f"{used} None\n"
    )


def test_what_cannot_be_used_is_refused() -> None:
    missing = [name for name in native.VARIANTS if name not in supported_variants()]
    for choice in ["fast", *missing]:
        script = "try: native.kernel_library()\nexcept Exception as e: print(type(e).__name__, e)"
        found = in_a_process(script, choice)
        assert f"BackendUnavailable WHISPER_OPT_KERNELS is '{choice}': " in found
        assert f"the kernels '{choice}'" in found or f"no kernels '{choice}'" in found
        assert "generic" in found
        assert "or unset WHISPER_OPT_KERNELS" in found


def test_onnxruntime_gets_the_same_refusal(tmp_path: Path) -> None:
    """If the library is registered without asking first."""
    script = f"""
import onnxruntime
options = onnxruntime.SessionOptions()
try: options.register_custom_ops_library({str(native.LIBRARY)!r})
except Exception as e: print(e)
"""
    assert "no kernels 'fast' for this system" in in_a_process(script, "fast")


def test_an_engine_is_not_opened_with_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless it does not use kernels."""
    engine = export(sharp_checkpoint(random_dims()), tmp_path / "engine", precision="int8")
    monkeypatch.setenv(native.VARIABLE, "fast")
    monkeypatch.setattr(native, "LIBRARY", tmp_path / "none.so")
    why_no_kernels.cache_clear()
    try:
        with pytest.raises(BackendUnavailable, match="WHISPER_OPT_KERNELS is 'fast': not compiled"):
            open_backend(engine, LoadOptions(device="cpu"))
        with pytest.raises(BackendUnavailable, match="or unset WHISPER_OPT_KERNELS"):
            load_graph(engine, "encoder.onnx", 1, kernels=True)
        assert open_backend(engine, LoadOptions(device="cpu", kernels="off")).kernels is False
    finally:
        monkeypatch.undo()
        why_no_kernels.cache_clear()


needs_a_compiler = pytest.mark.skipif(
    hatch_build.compiler() is None, reason="not tested: no C compiler"
)


def compiled(folder: Path, *flags: str) -> Path:
    """The library of the sources in ``folder``, optimized little: that takes half the time."""
    target = folder / "compiled.so"
    command = [*(hatch_build.compiler() or ()), *hatch_build.FLAGS, "-O1", *flags]
    command += [*map(str, sorted(folder.glob("*.c"))), "-lm", "-o", str(target)]
    subprocess.run(command, check=True)
    return target


def copied(parent: Path) -> Path:
    """A copy of the sources, in ``parent``."""
    ignored = shutil.ignore_patterns("*.so", "*.py")
    return Path(shutil.copytree(FOLDER, parent / "native", ignore=ignored))


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """A copy of the sources."""
    return copied(tmp_path)


@needs_a_compiler
def test_a_variant_that_fails_its_self_test_is_not_used(sources: Path) -> None:
    """A library is compiled in which the best variant fails."""
    best, *others = supported_variants()
    if not others:
        pytest.skip("not tested: this processor has one variant")
    library = compiled(sources, f'-DWHISPER_OPT_FAULTY="{best}"')
    faulty = ctypes.CDLL(str(library))
    faulty.whisper_opt_failed.restype = faulty.whisper_opt_variant.restype = ctypes.c_char_p
    assert faulty.whisper_opt_failed() == best.encode()
    expected = None if others == ["generic"] else others[0].encode()
    assert faulty.whisper_opt_variant() == expected
    found = in_a_process("print(native.why_no_kernels(), native.variant())", None, library)
    assert f"kernels for {native.VARIANTS[best]} failed their self-test" in found


@needs_a_compiler
@pytest.mark.parametrize(
    ("file", "right", "wrong"),
    [
        ("linear.h", "const vf factor = vf_mul(scale##j,", "const vf factor = vf_add(scale##j,"),
        ("linear4.h", "high = vi_and(vi_shift_right_4(both)", "high = vi_and(both"),
    ],
)
def test_the_self_test_finds_wrong_products(
    file: str, right: str, wrong: str, sources: Path
) -> None:
    """Of 8-bit and of 4-bit weights."""
    code = (sources / file).read_text()
    assert right in code
    (sources / file).write_text(code.replace(right, wrong))
    library = ctypes.CDLL(str(compiled(sources)))
    library.whisper_opt_failed.restype = ctypes.c_char_p
    assert library.whisper_opt_failed() == ",".join(supported_variants()).encode()


@pytest.fixture(scope="module")
def counter(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """A library with ``count_tasks``."""
    folder = copied(tmp_path_factory.mktemp("counter"))
    for file in folder.glob("*.c"):
        if file.name not in ("kernels_generic.c", "weights.c"):
            file.unlink()
    (folder / "main.c").write_text(COUNTS_TASKS)
    library = ctypes.CDLL(str(compiled(folder)))
    library.count_tasks.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    return library


@needs_a_compiler
@pytest.mark.parametrize(("n_out", "n_rows", "least"), [(384, 1, 6), (512, 5, 8), (1536, 97, 9)])
def test_both_kinds_of_products_have_as_many_tasks(
    n_out: int, n_rows: int, least: int, counter: ctypes.CDLL
) -> None:
    """A step of few rows too: threads share its work."""
    found = [counter.count_tasks(bits, n_out, n_rows) for bits in (8, 4)]
    assert found[0] == found[1] >= least


COUNTS_TASKS = """
#include <stdlib.h>
#include "kernels.h"
extern const Kernels kernels_generic;
static void count(void *context, void (*work)(void *, size_t), size_t n, void *data) {
  (void)work, (void)data;
  *(int *)context = (int)n;
}
__attribute__((visibility("default"))) int count_tasks(int bits, int64_t n_out, int64_t n_rows) {
  int tasks = 0;
  const Threads threads = {&tasks, count};
  const Packed weight = {.n_in = 64, .n_out = n_out, .width = kernels_generic.width};
  float *x = calloc(n_rows, 64 * sizeof *x);
  const Linear args = {.weight = &weight, .n_rows = n_rows, .x = x};
  (bits == 8 ? kernels_generic.linear : kernels_generic.linear4)(&args, threads);
  free(x);
  return tasks;
}
"""
