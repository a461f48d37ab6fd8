"""Connectionist temporal classification by its definition: every path, one after another."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict

import torch


def random_log_probs(steps, batch, labels, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(steps, batch, labels, generator=generator, dtype=torch.float64)
    return logits.log_softmax(-1).to(dtype)


def collapse(path, blank):
    return tuple(label for label, _ in itertools.groupby(path) if label != blank)


def paths(frames, blank):
    """(labels, path, log-probability) of every path through ``frames``, (T, labels)."""
    rows = frames.tolist()
    for path in itertools.product(range(frames.shape[1]), repeat=len(rows)):
        log_prob = math.fsum(row[label] for row, label in zip(rows, path, strict=True))
        yield collapse(path, blank), path, log_prob


def totals(frames, blank):
    """Log-probability of every label sequence that has a path."""
    found = defaultdict(float)
    for labels, _, log_prob in paths(frames, blank):
        found[labels] += math.exp(log_prob)
    return {labels: math.log(total) for labels, total in found.items() if total}


def pad(targets, filler=0):
    """Targets as (B, S), padded, and their lengths."""
    most = max(map(len, targets), default=0)
    rows = [[*target, *[filler] * (most - len(target))] for target in targets]
    return torch.tensor(rows, dtype=torch.int64).reshape(len(targets), most), [
        len(target) for target in targets
    ]
