"""Whether a target is spelled as the text has it: how many positions it follows, and how many the same word with its space.

`return` and ` return` are two tokens. Who names the one that the text hardly has gets means over a position or two.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from actstore.engine.contributions.targets import other_spelling

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from actstore.engine.contributions.source import Source
    from actstore.engine.contributions.targets import Target

FEW: Final = 10
"""A mean over fewer positions is said to be one."""
TIMES: Final = 10
"""How many times as often the other spelling follows a position where it is named."""


class Spelling(NamedTuple):
    """A target and the other spelling of its word, each with the number of counted positions that it follows."""

    target: Target
    n: int
    other: Target | None
    n_other: int


def spellings(source: Source, targets: Sequence[Target]) -> list[Spelling]:
    """Each target's own spelling and the other one, counted over a capture."""
    others = [other_spelling(source.store, target) for target in targets]
    counts = _count_following(source, [*targets, *(other for other in others if other is not None)])
    return [
        Spelling(target, counts[target.token], other, 0 if other is None else counts[other.token])
        for target, other in zip(targets, others, strict=True)
    ]


def spelling_sentences(source: Source, targets: Sequence[Target]) -> list[str]:
    """A sentence for each target that follows few positions, or far fewer than the other spelling of its word."""
    name, sentences = source.capture.record.name, []
    for target, n, other, n_other in spellings(source, targets):
        follows = f"{target.text!r} follows {n:,} position{'' if n == 1 else 's'} of capture {name!r}"
        if other is not None and n_other >= TIMES * n:
            sentences.append(
                f"{follows}, and {other.text!r} {n_other:,}: name that spelling if it is the word you mean."
            )
        elif n < FEW:
            sentences.append(f"{follows}: its scores are means over no more than that.")
    return sentences


def _count_following(source: Source, targets: Iterable[Target]) -> dict[int, int]:
    """Token → the number of counted positions of the capture that it follows."""
    tokens = np.unique([target.token for target in targets])
    counts = np.zeros(len(tokens), np.int64)
    for block in source.capture.blocks:
        following = source.next_tokens.of_block(block)
        following = following[source.slot_labels(block)[1] & np.isin(following, tokens)]
        counts += np.bincount(np.searchsorted(tokens, following), minlength=len(tokens))
    return dict(zip(tokens.tolist(), counts.tolist(), strict=True))
