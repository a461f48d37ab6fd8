"""Labels without their places in time: a bidirectional LSTM learns to read noisy patterns.

    python examples/ctc.py

Each label is a pattern of six features that lasts for some frames, with pauses in between. The
network is told which labels come, in order, and never where.
"""

import torch
from torch import nn

import cellwright as cw
from cellwright.train import ctc

LABELS, FEATURES = 5, 6  # label 0 is the blank


def make_batch(patterns, count, generator):
    """Sequences (T, B, features) with lengths, and their labels (B, S) with lengths."""

    def number(low, high):
        return int(torch.randint(low, high, (), generator=generator))

    sequences, targets = [], []
    for _ in range(count):
        target = torch.randint(1, LABELS, (number(1, 6),), generator=generator)
        pieces = []
        for label in target:
            pieces.append(torch.zeros(number(1, 4), FEATURES))
            pieces.append(patterns[label].expand(number(2, 5), FEATURES))
        clean = torch.cat(pieces)
        sequences.append(clean + 0.3 * torch.randn(clean.shape, generator=generator))
        targets.append(target)
    lengths, counts = (torch.tensor([len(e) for e in each]) for each in (sequences, targets))
    pad = nn.utils.rnn.pad_sequence
    return pad(sequences), lengths, pad(targets, batch_first=True), counts


class Reader(nn.Module):
    """Log-probabilities (T, B, labels) of every frame."""

    def __init__(self):
        super().__init__()
        self.lstm = cw.nn.LSTM(FEATURES, 24, bidirectional=True)
        self.head = nn.Linear(48, LABELS)

    def forward(self, x, lengths):
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, enforce_sorted=False)
        y, _ = nn.utils.rnn.pad_packed_sequence(self.lstm(packed)[0], total_length=len(x))
        return self.head(y).log_softmax(-1)


def main(steps=120, seed=0):
    """Train, and return the label error rate on sequences that were not trained on."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    patterns = torch.randn(LABELS, FEATURES, generator=generator)
    model = Reader()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for step in range(steps):
        x, lengths, targets, counts = make_batch(patterns, 16, generator)
        loss = ctc.ctc_loss(model(x, lengths), targets, lengths, counts)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 25 == 0:
            print(f"step {step:3d}   loss {loss.item():.3f}")

    x, lengths, targets, counts = make_batch(patterns, 100, generator)
    with torch.no_grad():
        log_probs = model(x, lengths)
    right = [target[:count] for target, count in zip(targets, counts, strict=True)]
    best_path = ctc.greedy(log_probs, lengths)
    beam = ctc.prefix_beam(log_probs, lengths)
    by_path = ctc.label_error_rate([each.labels for each in best_path], right)
    by_beam = ctc.label_error_rate([each[0].labels for each in beam], right)
    print(f"label error rate: {by_path.rate:.2%} greedy, {by_beam.rate:.2%} beam")
    for span in best_path[0].spans:
        print(f"frames {span.first} to {span.last}: label {span.label}")
    return by_beam.rate


if __name__ == "__main__":
    main()
