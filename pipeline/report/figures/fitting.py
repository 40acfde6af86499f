"""What fits where: how wide a text is in the figures' type, labels cut to their room, ticks that leave room for their names.

All lengths are inches.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache

LABEL = 1.9  # of a label of a row, at most
_TYPE = 9.0  # points; "font.size" of panels.STYLE
_HINTED = 1.06  # letters on whole pixels take more than their outlines
_GAP = 0.06  # between two names of ticks


@lru_cache(maxsize=4096)
def width_of(text: str, size: float = _TYPE) -> float:
    """How wide a line of text is."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextToPath

    # DejaVu Sans, which comes with matplotlib, at the size that it is measured best.
    font = FontProperties(family="DejaVu Sans", size=100)
    width, _, _ = TextToPath().get_text_width_height_descent(text, font, ismath=False)
    return float(width) / 100 * size / 72 * _HINTED


def short(text: str, room: float = LABEL, size: float = _TYPE) -> str:
    """A label that leaves room for what is drawn; the tables have the whole."""
    if width_of(text, size) <= room:
        return text
    low, high = 0, len(text) - 1  # letters that fit, and the most that may
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if width_of(f"{text[:middle]}…", size) <= room else (low, middle - 1)
    return f"{text[:low]}…"


def room_for(names: Iterable[str]) -> float:
    """What names on the left take."""
    return max((width_of(short(name)) for name in names), default=0.0)


def ticks_that_fit(
    ticks: Sequence[float], place: Callable[[float], float], name: Callable[[float], str], *, across: bool
) -> list[float]:
    """Those of these ticks whose names do not meet, from zero outwards.

    Args:
        place: where a tick is on its axis, inches.
        name: what is written at it.
        across: whether the axis is a horizontal one, on which a long name takes more room.
    """
    kept: list[float] = []
    for tick in sorted(ticks, key=abs):
        half = width_of(name(tick)) / 2 if across else 0.07
        if all(
            abs(place(tick) - place(other))
            >= half + (width_of(name(other)) / 2 if across else 0.07) + _GAP * across
            for other in kept
        ):
            kept.append(tick)
    return sorted(kept)
