"""Connectionist temporal classification: labels of a sequence without their places in time.

A network gives, for each frame, log-probabilities of the labels and of a *blank*. A path names
one of them a frame; it stands for the labels that are left when equal neighbours are joined and
then blanks are dropped: ``a a - a b b`` is ``a a b``. The probability of a label sequence is the
sum over all paths that stand for it.

Log-probabilities are (T, B, labels), targets (B, S), padded, with their lengths.

Source: Graves, Fernández, Gomez & Schmidhuber 2006; prefix beam search: Graves 2012 and Hannun,
Maas, Jurafsky & Ng 2014.
"""

from cellwright.train.ctc.alignment import Alignment, Span, align, greedy
from cellwright.train.ctc.beam import Hypothesis, prefix_beam
from cellwright.train.ctc.error_rate import ErrorRate, label_error_rate
from cellwright.train.ctc.loss import CTCLoss, ctc_loss, frames_needed

__all__ = [
    "Alignment", "CTCLoss", "ErrorRate", "Hypothesis", "Span", "align", "ctc_loss",
    "frames_needed", "greedy", "label_error_rate", "prefix_beam",
]  # fmt: skip
