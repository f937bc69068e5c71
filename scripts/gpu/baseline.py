"""The same model in plain torch, eager or compiled: the baseline of the measurements.

Random weights of the right shapes, fp16, a static cache, cross-attention keys and values computed
once; no search and no constraints.
"""

from __future__ import annotations

from typing import Any

from gpu.measure import PAST, PROMPT, Case, figures, time_runs
from gpu.outcome import NotAvailableError
from whisper_opt.core.dims import HEAD_DIM, N_FRAMES, ModelDims

__all__ = ["torch_latency"]


def _torch() -> Any:
    try:
        import torch
    except ImportError as error:
        raise NotAvailableError(f"torch does not import: {error}") from error
    return torch


class _Layer:
    """Weights of one block: [n_out, n_in] matrices by name."""

    def __init__(self, make: Any, state: int, cross: bool) -> None:
        self.norm = [(make(state), make(state)) for _ in range(3 if cross else 2)]
        self.qkv, self.out = make(3 * state, state), make(state, state)
        self.query: Any
        self.merged: Any
        self.query, self.merged = (
            (make(state, state), make(state, state)) if cross else (None, None)
        )
        self.up, self.down = make(4 * state, state), make(state, 4 * state)


class _Model:
    """Encoder and decoder as functions of tensors."""

    def __init__(self, torch: Any, dims: ModelDims, device: str, dtype: Any) -> None:
        self.torch, self.dims = torch, dims

        def make(*shape: int) -> Any:
            return torch.randn(*shape, device=device, dtype=dtype) * (shape[-1] ** -0.5)

        state = dims.n_text_state
        self.conv1, self.conv2 = make(state, dims.n_mels, 3), make(state, state, 3)
        self.encoder = [_Layer(make, state, False) for _ in range(dims.n_audio_layer)]
        self.decoder = [_Layer(make, state, True) for _ in range(dims.n_text_layer)]
        self.cross = [make(2 * state, state) for _ in range(dims.n_text_layer)]
        self.embedding = make(dims.n_vocab, state)
        self.audio_positions = make(dims.n_audio_ctx, state)
        self.text_positions = make(dims.n_text_ctx, state)

    def _norm(self, value: Any, weights: Any) -> Any:
        return self.torch.nn.functional.layer_norm(value, value.shape[-1:], *weights)

    def _heads(self, value: Any) -> Any:
        return value.unflatten(-1, (-1, HEAD_DIM)).transpose(1, 2)

    def _mix(self, query: Any, key: Any, value: Any, mask: Any = None) -> Any:
        attend = self.torch.nn.functional.scaled_dot_product_attention
        return attend(query, key, value, attn_mask=mask).transpose(1, 2).flatten(2)

    def _mlp(self, value: Any, layer: _Layer) -> Any:
        functional = self.torch.nn.functional
        hidden = functional.gelu(functional.linear(self._norm(value, layer.norm[-1]), layer.up))
        return value + functional.linear(hidden, layer.down)

    def encode(self, mel: Any) -> list[tuple[Any, Any]]:
        """Mel [A, n_mels, 3000] -> cross-attention keys and values [A, H, 1500, 64] per layer."""
        functional = self.torch.nn.functional
        value = functional.gelu(functional.conv1d(mel, self.conv1, padding=1))
        value = functional.gelu(functional.conv1d(value, self.conv2, stride=2, padding=1))
        value = value.transpose(1, 2) + self.audio_positions
        for layer in self.encoder:
            packed = functional.linear(self._norm(value, layer.norm[0]), layer.qkv)
            query, key, val = (self._heads(part) for part in packed.chunk(3, dim=-1))
            value = value + functional.linear(self._mix(query, key, val), layer.out)
            value = self._mlp(value, layer)
        packed = [functional.linear(value, weight).chunk(2, dim=-1) for weight in self.cross]
        return [(self._heads(key), self._heads(val)) for key, val in packed]

    def decode(self, tokens: Any, start: Any, cache: Any, cross: Any) -> Any:
        """Tokens [N, S] from position ``start`` [1] on -> best next token [N, 1]."""
        torch, functional = self.torch, self.torch.nn.functional
        positions = start + torch.arange(tokens.shape[1], device=tokens.device)
        slots = torch.arange(self.dims.n_text_ctx, device=tokens.device)
        mask = slots[None] <= positions[:, None]
        value = self.embedding[tokens] + self.text_positions[positions]
        for layer, (keys, values), encoded in zip(self.decoder, cache, cross):
            packed = functional.linear(self._norm(value, layer.norm[0]), layer.qkv)
            query, key, val = (self._heads(part) for part in packed.chunk(3, dim=-1))
            keys.index_copy_(2, positions, key)
            values.index_copy_(2, positions, val)
            value = value + functional.linear(self._mix(query, keys, values, mask), layer.out)
            query = self._heads(functional.linear(self._norm(value, layer.norm[1]), layer.query))
            value = value + functional.linear(self._mix(query, *encoded), layer.merged)
            value = self._mlp(value, layer)
        scores = functional.linear(value[:, -1:], self.embedding)
        return scores.float().argmax(dim=-1)


def torch_latency(
    dims: ModelDims, case: Case, *, device: str, compiled: bool, at_most: float, rounds: int = 50
) -> dict[str, Any]:
    """Results of one case, as of :func:`gpu.measure.latency`; hypotheses are plain rows.

    Raises:
        NotAvailableError: torch is not installed.
    """
    torch = _torch()
    on_gpu = device.startswith("cuda")
    wait = torch.cuda.synchronize if on_gpu else lambda: None
    dtype = torch.float16 if on_gpu else torch.float32
    rows = case.batch * case.beam

    def timed(run: Any, limit: int) -> dict[str, Any]:
        def whole() -> None:
            run()
            wait()

        for _ in range(3):  # compile and capture
            whole()
        return figures(time_runs(whole, at_most, limit))

    with torch.inference_mode():
        model = _Model(torch, dims, device, dtype)
        encode, decode = model.encode, model.decode
        if compiled:
            encode = torch.compile(encode, dynamic=False)
            decode = torch.compile(decode, mode="reduce-overhead", dynamic=False)
        mel = torch.randn(case.batch, dims.n_mels, N_FRAMES, device=device, dtype=dtype)
        cross = [
            tuple(part.repeat_interleave(case.beam, 0) for part in pair) for pair in encode(mel)
        ]
        shape = (rows, dims.n_text_head, dims.n_text_ctx, HEAD_DIM)
        cache = [
            tuple(torch.zeros(shape, device=device, dtype=dtype) for _ in range(2)) for _ in cross
        ]
        prompt = torch.zeros(rows, PROMPT, dtype=torch.long, device=device)
        first, past = (torch.tensor([n], device=device) for n in (0, PAST))
        token = torch.zeros(rows, 1, dtype=torch.long, device=device)
        return {
            "encode": timed(lambda: encode(mel), min(rounds, 20)),
            "prefill": timed(lambda: decode(prompt, first, cache, cross).cpu(), min(rounds, 20)),
            "step": timed(lambda: decode(token, past, cache, cross).cpu(), rounds),
        }
