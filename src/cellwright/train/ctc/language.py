"""What labels are worth before anything is heard: a language model and a bonus."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cellwright.errors import InputError, InputTypeError

Prefix = tuple[int, ...]
LanguageModel = Callable[[Prefix, int], float]
EndModel = Callable[[Prefix], float]

_ROUNDING = 1e-5  # what a log-probability of a language model in float32 may be above 0


@dataclass(frozen=True)
class Prior:
    """A language model, if there is one, with its weight, and the bonus of a label."""

    model: LanguageModel | None
    end: EndModel | None
    alpha: float
    beta: float

    @classmethod
    def of(cls, model: Any, end: Any, alpha: Any, beta: Any) -> Prior:
        """The arguments of a search, checked; what has no weight is left out."""
        for name, given in (("language_model", model), ("language_model_end", end)):
            if given is not None and not callable(given):
                raise InputTypeError(f"{name}: expected a function, got {type(given).__name__}")
        if not (isinstance(alpha, (int, float)) and 0 <= alpha < math.inf):
            raise InputError(f"alpha: expected a finite weight, at least 0, got {alpha!r}")
        if not (isinstance(beta, (int, float)) and math.isfinite(beta)):
            raise InputError(f"beta: expected a finite bonus, got {beta!r}")
        return cls(model, end, alpha, beta) if alpha else cls(None, None, alpha, beta)

    def label(self, prefix: Prefix, label: int) -> float:
        """Worth of one more label."""
        assert self.model is not None
        given = self.model(prefix, label)
        return self.alpha * _number(given, "language_model", prefix, label) + self.beta

    def ended(self, labels: Prefix) -> float:
        """Worth of nothing more."""
        if self.end is None:
            return 0.0
        return self.alpha * _number(self.end(labels), "language_model_end", labels)


def _number(given: Any, name: str, *asked: Any) -> float:
    """What a language model said, at most 0."""
    try:
        number = float(given)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputTypeError(f"{name}{asked}: expected a log-probability, got {given!r}") from error
    if not number <= _ROUNDING:
        raise InputError(f"{name}{asked}: expected a log-probability, at most 0, got {number}")
    return min(number, 0.0)
