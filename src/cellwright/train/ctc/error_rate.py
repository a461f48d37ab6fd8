"""How far recognised labels are from the right ones."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from cellwright.errors import InputError, InputTypeError


@dataclass(frozen=True)
class ErrorRate:
    """Edits that turn references into hypotheses.

    Attributes:
        substitutions, insertions, deletions: their numbers.
        length: labels of all references.
    """

    substitutions: int
    insertions: int
    deletions: int
    length: int

    @property
    def edits(self) -> int:
        """All three together: the edit distance."""
        return self.substitutions + self.insertions + self.deletions

    @property
    def rate(self) -> float:
        """Edits over the length of the references.

        It is over 1 where insertions abound; without any label in the references it is 0.0
        if there was nothing to edit and infinite otherwise.
        """
        if self.length:
            return self.edits / self.length
        return math.inf if self.edits else 0.0


def label_error_rate(
    hypotheses: Sequence[Sequence[Hashable] | Tensor],
    references: Sequence[Sequence[Hashable] | Tensor],
) -> ErrorRate:
    """Edit distance of hypotheses to references over the length of the references.

    ::

        rate = Σ (substitutions + insertions + deletions) / Σ length of the reference

    Sums go over all pairs, so long references weigh more, as is usual for words and characters.
    An empty reference adds nothing to the length; each label that was heard in its place is an
    insertion. Where several smallest sets of edits exist, the one with the fewest substitutions
    is counted.

    Source: Graves et al. 2006, section 2.1 (there as the mean of each pair's rate).

    Args:
        hypotheses: what was recognised: sequences of labels, words or characters.
        references: what is right, one for each hypothesis.

    Raises:
        InputError: not as many hypotheses as references.
        InputTypeError: not sequences of sequences.

    >>> found = label_error_rate(["sitting", ""], ["kitten", "a"])
    >>> print(f"{found.rate:.3f}", found.substitutions, found.insertions, found.deletions)
    0.571 2 1 1
    """
    found, right = _read("hypotheses", hypotheses), _read("references", references)
    if len(found) != len(right):
        raise InputError(
            f"hypotheses: expected one for each of the {len(right)} references, got {len(found)}"
        )
    substitutions = insertions = deletions = length = 0
    for hypothesis, reference in zip(found, right, strict=True):
        edits, substituted = _distance(hypothesis, reference)
        surplus = len(hypothesis) - len(reference)  # insertions - deletions
        inserted = (edits - substituted + surplus) // 2
        substitutions += substituted
        insertions += inserted
        deletions += inserted - surplus
        length += len(reference)
    return ErrorRate(substitutions, insertions, deletions, length)


def _read(name: str, given: Any) -> list[list[Hashable]]:
    """Sequences of labels as lists."""
    if isinstance(given, (str, Tensor)) or not isinstance(given, Sequence):
        raise InputTypeError(
            f"{name}: expected a list of sequences of labels, got {type(given).__name__}"
        )
    found = []
    for index, each in enumerate(given):
        try:
            labels = each.tolist() if isinstance(each, Tensor) else list(each)
            hash(tuple(labels))
        except TypeError as error:
            raise InputTypeError(
                f"{name}: expected a sequence of labels at position {index}, got {each!r}"
            ) from error
        found.append(labels)
    return found


def _distance(hypothesis: list[Hashable], reference: list[Hashable]) -> tuple[int, int]:
    """(edits, substitutions): the smallest number of edits, then the fewest substitutions.

    Both are one number: an edit costs ``unit``, a substitution 1 more.
    """
    unit = len(hypothesis) + len(reference) + 1
    numbers: dict[Hashable, int] = {}
    found, right = (
        np.array([numbers.setdefault(label, len(numbers)) for label in labels], dtype=np.int64)
        for labels in (hypothesis, reference)
    )
    ramp = unit * np.arange(len(found) + 1)
    row = ramp.copy()  # cost of turning no label of the reference into each start of what was found
    for label in right:
        below = row + unit  # the label is deleted
        below[1:] = np.minimum(below[1:], row[:-1] + np.where(found == label, 0, unit + 1))
        row = np.minimum.accumulate(below - ramp) + ramp  # any number of insertions follows
    return divmod(int(row[-1]), unit)
