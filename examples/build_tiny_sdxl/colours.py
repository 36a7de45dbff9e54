"""Named colours: what a caption's colour word means in sRGB."""

import numpy as np

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (220, 30, 35),
    "orange": (245, 140, 20),
    "yellow": (250, 220, 40),
    "green": (40, 160, 60),
    "cyan": (60, 210, 225),
    "blue": (35, 75, 215),
    "purple": (130, 50, 175),
    "pink": (250, 130, 185),
    "brown": (125, 75, 40),
    "black": (15, 15, 18),
    "gray": (130, 130, 135),
    "white": (250, 250, 250),
}


def nearest_colours(rgb: np.ndarray) -> list[str]:
    """Names of the colours nearest to `rgb` (N, 3), 0 to 255, in squared sRGB distance."""
    table = np.asarray(list(COLOURS.values()), dtype=np.float64)
    index = ((rgb[:, None].astype(np.float64) - table) ** 2).sum(-1).argmin(1)
    return [list(COLOURS)[k] for k in index]


def with_article(noun: str) -> str:
    return ("an " if noun[:1] in "aeiou" else "a ") + noun
