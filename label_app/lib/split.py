"""Which labels a training does not see, so that old and new weights can be compared on them."""

from __future__ import annotations

import hashlib
import math


def hold_out(names: list[str], share: float, history: list[dict], unaided: frozenset[str] = frozenset()) -> list[str]:
    """Choose the labels to measure on: none of a single label, otherwise a share of at least one, sorted.

    Labels held out by the latest training stay so; others join, those drawn without a suggestion first, in an order
    that depends on their names alone.

    Args:
        names: ids of all labels.
        share: of the labels, in (0, 1).
        history: entries with ``training``, ``held_out`` and ``promoted``; what trained weights that serve stays out.
        unaided: names of labels that were drawn without a suggestion, which would favour the weights that made it.
    """
    if len(names) < 2:
        return []
    used = {name for entry in history if entry["promoted"] for name in entry["training"]}
    earlier = set(history[-1]["held_out"]) if history else set()
    free = [name for name in names if name not in used]
    free.sort(key=lambda name: (name not in earlier, name not in unaided, hashlib.sha256(name.encode()).hexdigest()))
    count = min(max(1, math.floor(share * len(names) + 0.5)), len(names) - 1)
    stay = sum(name in earlier for name in free)
    return sorted(free[: max(count, stay)][: len(names) - 1])
