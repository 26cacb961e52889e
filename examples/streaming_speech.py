"""A streaming speech encoder with residual adapters: chunks in ONNX Runtime equal whole clips in torch.

    python examples/streaming_speech.py

The encoder is typical of streaming recognizers: each layer has attention over a window of past frames, a causal
convolution and a feed-forward part, each with a residual connection. Its inputs are the frames of a chunk and its
states: for each layer the keys and values of the window, and the end of the convolution's input. The returned states
are fed back with the next chunk, as in sherpa-onnx for Zipformer. Weights are random; the graph equals that of a
trained model.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

import adapter_export as ae
from adapter_export.graph.adapter import Adapter
from adapter_export.runtime import Session

FEATURES, WIDTH, HEADS, LAYERS = 80, 64, 4, 2
WINDOW, KERNEL = 16, 7
"""Number of frames that attention looks back, and length of a convolution."""

State = tuple[Tensor, ...]


class Layer(nn.Module):
    """One layer; its state is keys and values [batch, window, width], and frames [batch, kernel - 1, width]."""

    def __init__(self) -> None:
        super().__init__()
        self.attention_norm, self.convolution_norm, self.ffn_norm = (nn.LayerNorm(WIDTH) for _ in range(3))
        self.query, self.key, self.value, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.depthwise = nn.Conv1d(WIDTH, WIDTH, KERNEL, groups=WIDTH)
        self.pointwise = nn.Linear(WIDTH, WIDTH)
        self.ffn = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.SiLU(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x: Tensor, keys: Tensor, values: Tensor, frames: Tensor, heard: Tensor) -> tuple[Tensor, State]:
        normed = self.attention_norm(x)
        keys = torch.cat([keys, self.key(normed)], 1)
        values = torch.cat([values, self.value(normed)], 1)
        x = x + self.out(self.attend(self.query(normed), keys, values, heard))
        frames = torch.cat([frames, self.convolution_norm(x)], 1)
        x = x + self.pointwise(functional.silu(self.depthwise(frames.transpose(1, 2)).transpose(1, 2)))
        x = x + self.ffn(self.ffn_norm(x))
        return x, (keys[:, -WINDOW:], values[:, -WINDOW:], frames[:, 1 - KERNEL :])

    def attend(self, query: Tensor, keys: Tensor, values: Tensor, heard: Tensor) -> Tensor:
        """Each frame looks at itself and at the window before it, of which all but `heard` frames do not exist."""
        now = torch.arange(query.shape[1])[:, None]
        then = torch.arange(keys.shape[1])[None]
        within = (then >= now) & (then <= now + WINDOW)
        there = then + heard.clamp(min=0)[:, :, None] >= WINDOW  # its own chunk in any case
        mask = (within & there)[:, None]
        split = (part.unflatten(2, (HEADS, -1)).transpose(1, 2) for part in (query, keys, values))
        return functional.scaled_dot_product_attention(*split, attn_mask=mask).transpose(1, 2).flatten(2)


class Encoder(nn.Module):
    """Frames [batch, frames, 80] and a state to vectors [batch, frames, 64] and the next state."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(FEATURES, WIDTH)
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
        self.norm = nn.LayerNorm(WIDTH)

    def forward(
        self, features: Tensor, heard: Tensor, keys: list[Tensor], values: list[Tensor], frames: list[Tensor]
    ) -> dict[str, Tensor]:
        x, found = self.project(features), {}
        for at, (layer, *state) in enumerate(zip(self.layers, keys, values, frames, strict=True)):
            x, (k, v, f) = layer(x, *state, heard)
            found |= {f"next.keys.{at}": k, f"next.values.{at}": v, f"next.frames.{at}": f}
        return {"hidden": self.norm(x), "next.heard": heard + features.shape[1], **found}


def silence(batch: int) -> dict[str, np.ndarray]:
    """The state before the first frame."""
    lengths = {"keys": WINDOW, "values": WINDOW, "frames": KERNEL - 1}
    names = {f"{name}.{at}": length for name, length in lengths.items() for at in range(LAYERS)}
    state = {name: np.zeros((batch, length, WIDTH), np.float32) for name, length in names.items()}
    return {"heard": np.zeros((batch, 1), np.float32), **state}


def tensors(features: np.ndarray) -> dict[str, Tensor]:
    """Return the inputs of the captured encoder for whole clips [batch, frames, 80]."""
    return {name: torch.from_numpy(value) for name, value in {"features": features, **silence(len(features))}.items()}


def arguments(features: np.ndarray) -> dict[str, Any]:
    """The same as the encoder's own code takes it."""
    given = tensors(features)
    lists = {part: [given[f"{part}.{at}"] for at in range(LAYERS)] for part in ("keys", "values", "frames")}
    return {"features": given["features"], "heard": given["heard"], **lists}


def stream(session: Session, clip: np.ndarray, chunks: list[int], adapters: list[str | None]) -> np.ndarray:
    """Feed an audio file [batch, frames, 80] in chunks, each with an adapter; the vectors of all frames."""
    state, start, heard = silence(len(clip)), 0, []
    for length, adapter in zip(chunks, adapters, strict=True):
        found = session.run({"features": clip[:, start : start + length], **state}, adapter)
        state = {name: found[f"next.{name}"] for name in state}
        heard.append(found["hidden"])
        start += length
    return np.concatenate(heard, 1)


def clip(seed: int, frames: int, batch: int = 1) -> np.ndarray:
    """Frames of a made-up clip: three tones that come and go, as a mel filter bank hears them."""
    generator, bands = np.random.default_rng(seed), np.arange(FEATURES)
    time = np.arange(frames)[None, :, None]
    tones = generator.uniform(0, FEATURES, (3, batch, 1, 1)), generator.uniform(0.1, 0.6, (3, batch, 1, 1))
    heard = [np.exp(-(((bands - at) / 6) ** 2)) * (1 + np.sin(time * rate)) for at, rate in zip(*tones, strict=True)]
    return np.sum(heard, 0).astype(np.float32)


def far(features: np.ndarray) -> np.ndarray:
    """The same from the other end of the room: soft, without highs."""
    return 0.3 * features * np.linspace(1, 0.2, FEATURES, dtype=np.float32)


def noisy(features: np.ndarray) -> np.ndarray:
    """The same in a car."""
    hum = np.exp(-np.arange(FEATURES, dtype=np.float32) / 8)
    return features + hum * np.random.default_rng(len(features)).normal(1, 0.3, features.shape).astype(np.float32)


ROOMS = {"far": far, "noisy": noisy}


def adapt(
    base: ae.Base, name: str, target: Tensor, features: np.ndarray, steps: int = 60
) -> tuple[Adapter, np.ndarray]:
    """Train an adapter that maps distant clips to the encoder's output for near clips.

    Returns the adapter, and torch's output with it for another clip, in one call.
    """
    far_away = tensors(ROOMS[name](near()))
    with ae.attach(base, kind="pfeiffer", bottleneck=16) as model:
        optimizer, losses = torch.optim.AdamW(model.learned().values(), lr=1e-2), []
        for _ in range(steps):
            loss = functional.mse_loss(model(**far_away)["hidden"], target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        print(f"adapter `{name}`: the error of the vectors falls from {losses[0]:.3f} to {losses[-1]:.3f}")
        with torch.no_grad():
            return model.to_adapter(), model(**tensors(features))["hidden"].numpy()


def near() -> np.ndarray:
    """The clips to learn from, as they are heard from near."""
    return clip(1, 48, batch=8)


def axes() -> dict[str, dict[int, str]]:
    return {name: {0: "batch"} for name in silence(1)} | {"features": {0: "batch", 1: "frames"}}


def main() -> None:
    torch.manual_seed(0)
    folder = Path(mkdtemp(prefix="streaming-speech-"))
    encoder = Encoder().eval()
    base = ae.capture(encoder, folder / "model.pt", example_inputs=arguments(clip(0, 9, batch=2)), axes=axes())
    features = clip(7, 60)
    with torch.no_grad():
        target, alone = (encoder(**arguments(one))["hidden"] for one in (near(), features))
    adapted = {name: adapt(base, name, target, features) for name in ROOMS}
    bundle = ae.build(
        base, {name: adapter for name, (adapter, _) in adapted.items()}, folder / "bundle", variants=("slots", "inputs")
    )
    session = bundle.session(threads=1)

    chunks = [16, 1, 7, 16, 4, 16]
    for name, expected in {None: alone.numpy(), **{name: heard for name, (_, heard) in adapted.items()}}.items():
        found = stream(session, features, chunks, [name] * len(chunks))
        print(
            f"{name or 'base'}: {len(chunks)} chunks in ONNX Runtime, the whole clip in torch: "
            f"{np.abs(found - expected).max():.1e} apart, of vectors up to {np.abs(expected).max():.1f}"
        )
        assert np.allclose(found, expected, atol=1e-4)

    halves = stream(session, features, chunks, ["far"] * 3 + ["noisy"] * 3)
    first, later = halves[:, :24], halves[:, 24:]
    far_alone = stream(session, features, chunks, ["far"] * 6)
    assert np.array_equal(first, far_alone[:, :24])
    moved = np.abs(later - far_alone[:, 24:]).max()
    assert moved > 0.1
    print(f"`noisy` instead of `far` after 24 frames: these are bit-identical, later frames change by {moved:.2f}")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
