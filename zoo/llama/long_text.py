"""A text of any length as the ids that its tokenizer gives for the whole of it, worked out window by window.

What a tokenizer makes of a place depends on what is around it, by rules of its own (spaces put before the text, words
split by an expression, merges): there is no sign at which any text could be cut. So windows overlap, and are
joined where both give the same ids for the same characters a few times in a row; where they do not, they become one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

WINDOW = 1 << 14
"""Characters that are encoded at once: of 2^17, `tokenizers` encodes a half to two thirds as many a second."""
OVERLAP = 1 << 9
AGREED = 16
"""Ids, with their places, that both windows must have in common where they are joined."""


def encoded(core: Any, read: Callable[[int], str]) -> Iterator[np.ndarray]:
    """ids of the text that `read(n)` gives, n characters or fewer at a time and "" at its end, in pieces. core: a
    `tokenizers.Tokenizer`. What it puts before and after a text is there once."""
    text, start = read(WINDOW), 0
    window = core.encode(text)
    ids = np.array(window.ids, np.int64)
    added = np.array(window.special_tokens_mask, bool)
    behind = len(ids) - len(np.trim_zeros(~added, "b"))  # as many ids are put behind a text
    ending = ids[len(ids) - behind :]
    after = 0  # ids of the window that were given before
    while more := read(WINDOW):
        overlap = min(OVERLAP, len(text))
        further = text[-overlap:] + more
        following = core.encode(further, add_special_tokens=False)
        joint = _joint(window, following, len(text) - overlap, overlap)
        if joint is None:  # nothing agrees: the windows are one
            text += more
            window = core.encode(text, add_special_tokens=start == 0)
            continue
        here, there = joint
        yield np.array(window.ids[after:here], np.int64)
        text, window, after, start = further, following, there, 1
    rest = np.array(window.ids[after:], np.int64)
    yield rest if start == 0 else np.concatenate([rest, ending])


def _joint(window: Any, following: Any, begin: int, overlap: int) -> tuple[int, int] | None:
    """Where both have the same ids: an index in each. The following one begins at character `begin` of the window."""
    for place in range(overlap // 4, 3 * overlap // 4):
        here, there = window.char_to_token(begin + place), following.char_to_token(place)
        if here is None or there is None or there < AGREED:
            continue
        if all(
            here + i < len(window.ids) and there + i < len(following.ids)
            and window.ids[here + i] == following.ids[there + i]
            and window.token_to_chars(here + i)[0] == begin + following.token_to_chars(there + i)[0]
            for i in range(AGREED)
        ):  # fmt: skip
            return here, there
    return None
