"""Deterministic weights and inputs that depend on a name, a shape and a seed alone; the same for every torch and numpy.

numpy's legacy RandomState is frozen by policy (NEP 19), so these numbers do not move between versions. Everything is
drawn and scaled in float64 and cast to float32 once, at the end.
"""
import math
import zlib

import numpy as np
import torch


def noise(name: str, shape) -> np.ndarray:
    """Draw standard normals of a shape, float64, seeded by crc32 of the name."""
    return np.random.RandomState(zlib.crc32(name.encode())).standard_normal(tuple(shape))


def fill(name: str, shape) -> torch.Tensor:
    """Return float32 weights for the published key `name` with its published shape.

    logit_scale (any shape)   ln(1/0.07)          logit_bias (any shape)   -10
    two or more dimensions    noise / sqrt(prod(shape[1:]))    (matrices, convolutions, embeddings, projections alike)
    one dimension, *.weight   1 + 0.1 noise       (norms)
    anything else             0.1 noise           (biases, class embedding)
    """
    shape = tuple(shape)
    if name.endswith("logit_scale"):
        return torch.full(shape, math.log(1 / 0.07), dtype=torch.float32)
    if name.endswith("logit_bias"):
        return torch.full(shape, -10.0, dtype=torch.float32)
    values = noise(name, shape)
    if len(shape) >= 2:
        values = values / math.sqrt(math.prod(shape[1:]))
    elif name.endswith(".weight"):
        values = 1 + 0.1 * values
    else:
        values = 0.1 * values
    return torch.from_numpy(np.asarray(values, dtype=np.float32))


def image(seed: int, b: int, side: int) -> torch.Tensor:
    """Draw images (b 3 side side) float32, uniform in [-1, 1)."""
    return torch.from_numpy((np.random.RandomState(seed).random_sample((b, 3, side, side)) * 2 - 1).astype(np.float32))


def ids(seed: int, b: int, t: int, vocab: int) -> torch.Tensor:
    """Draw tokens or codes (b t) int64, uniform in [0, vocab)."""
    return torch.from_numpy(np.floor(np.random.RandomState(seed).random_sample((b, t)) * vocab).astype(np.int64))


def clip_ids(seed: int, b: int, t: int, vocab: int) -> torch.Tensor:
    """Draw captions (b t) int64: start = vocab - 2, words in [1, vocab - 3], end = vocab - 1, then zeros; row i has 1 + (3 i + 2) % (t - 2) words.

    No word is 0, start or end, so the end token is unique and the padding is recognisable.
    """
    out = torch.zeros(b, t, dtype=torch.int64)
    words = 1 + ids(seed, b, t, vocab - 3)
    for i in range(b):
        n = 1 + (3 * i + 2) % (t - 2)
        out[i, 0] = vocab - 2
        out[i, 1:n + 1] = words[i, :n]
        out[i, n + 1] = vocab - 1
    return out


def probe(x: torch.Tensor) -> float:
    """One number that changes when any two elements swap: the dot product with noise("probe"), over sqrt(n)."""
    flat = x.detach().double().reshape(-1).numpy()
    return float(flat @ noise("probe", flat.shape) / math.sqrt(flat.size))
