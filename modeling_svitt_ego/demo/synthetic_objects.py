"""The things of the synthetic world: how each noun looks, opened or closed, and what can be done with it.

Shapes, not colours, tell nouns apart. Every `_draw_*` fills the unit square around (0, 0), x to the right, y down;
c is the colour of the thing, d a darker and l a lighter one, `opened` runs from 0 to 1.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

COLOURS = {
    "red": (214, 40, 40),
    "orange": (242, 135, 25),
    "yellow": (242, 216, 48),
    "green": (46, 160, 67),
    "blue": (40, 92, 214),
    "purple": (136, 62, 188),
    "white": (240, 240, 236),
}


@dataclass(frozen=True)
class SceneObject:
    """What never changes about an object. `size` is its longest side in frame heights at mid depth."""

    noun: str
    colour: str
    rgb: tuple[int, int, int]
    size: float


def shade(rgb: Sequence[float], factor: float) -> tuple[int, int, int]:
    """Darker for factor < 1; towards white for factor > 1."""
    if factor <= 1:
        return tuple(int(c * factor) for c in rgb)
    return tuple(int(c + (255 - c) * (factor - 1)) for c in rgb)


class Pen:
    """ImageDraw on a square RGBA sprite, in unit coordinates."""

    def __init__(self, side: int):
        self.image = Image.new("RGBA", (side, side))
        self._draw = ImageDraw.Draw(self.image)
        self._side = side

    def _px(self, points):
        return [((x + 0.5) * (self._side - 1), (y + 0.5) * (self._side - 1)) for x, y in points]

    def _width(self, width):
        return max(1, round(width * self._side))

    def polygon(self, points, fill):
        self._draw.polygon(self._px(points), fill=fill)

    def box(self, x0, y0, x1, y1, fill, radius=0.0):
        xy = self._px([(x0, y0), (x1, y1)])
        self._draw.rounded_rectangle(xy, radius=radius * self._side, fill=fill)

    def ellipse(self, x, y, rx, ry, fill):
        self._draw.ellipse(self._px([(x - rx, y - ry), (x + rx, y + ry)]), fill=fill)

    def ring(self, x, y, rx, ry, colour, width):
        self._draw.ellipse(self._px([(x - rx, y - ry), (x + rx, y + ry)]), outline=colour, width=self._width(width))

    def pie(self, x, y, r, start, end, fill):
        self._draw.pieslice(self._px([(x - r, y - r), (x + r, y + r)]), start, end, fill=fill)

    def chord(self, x, y, rx, ry, start, end, fill):
        self._draw.chord(self._px([(x - rx, y - ry), (x + rx, y + ry)]), start, end, fill=fill)

    def line(self, points, colour, width):
        self._draw.line(self._px(points), fill=colour, width=self._width(width), joint="curve")


_DARK, _STEEL, _PAPER = (38, 36, 40), (188, 194, 202), (236, 232, 218)


def _draw_cup(pen, c, d, l, opened):
    pen.ring(0.24, 0.03, 0.22, 0.22, d, 0.09)
    pen.box(-0.38, -0.34, 0.22, 0.46, c, radius=0.1)
    pen.box(-0.32, -0.2, -0.22, 0.36, l, radius=0.05)
    pen.ellipse(-0.08, -0.34, 0.3, 0.11, d)
    pen.ellipse(-0.08, -0.33, 0.23, 0.07, _DARK)


def _draw_bottle(pen, c, d, l, opened):
    pen.polygon([(-0.08, -0.3), (0.08, -0.3), (0.21, -0.06), (-0.21, -0.06)], c)
    pen.box(-0.08, -0.42, 0.08, -0.15, c)
    pen.box(-0.21, -0.1, 0.21, 0.5, c, radius=0.06)
    pen.box(-0.11, -0.5, 0.11, -0.38, _DARK, radius=0.02)
    pen.box(-0.21, 0.08, 0.21, 0.32, _PAPER)
    pen.box(-0.12, 0.16, 0.12, 0.24, d)


def _draw_ball(pen, c, d, l, opened):
    stripe = d if min(c) > 180 else (248, 248, 244)
    for k in range(6):
        pen.pie(0, 0, 0.45, 60 * k + 15, 60 * k + 75, c if k % 2 else stripe)
    pen.ring(0, 0, 0.45, 0.45, d, 0.035)
    pen.ellipse(0, 0, 0.1, 0.1, d)


def _draw_box(pen, c, d, l, opened):
    pen.polygon([(-0.46, -0.12), (-0.28, -0.34), (0.46, -0.34), (0.3, -0.12)], _DARK if opened > 0.05 else l)
    pen.box(-0.46, -0.12, 0.3, 0.46, c)
    pen.polygon([(0.3, -0.12), (0.46, -0.34), (0.46, 0.24), (0.3, 0.46)], d)
    pen.box(-0.14, -0.12, -0.02, 0.46, d)
    if opened > 0.05:  # the lid turns about its far edge
        x, y = _lid_edge(opened)
        pen.polygon([(-0.28, -0.34), (0.46, -0.34), (x + 0.76, y), (x, y)], l)
    else:
        pen.polygon([(-0.2, -0.12), (-0.02, -0.34), (0.09, -0.34), (-0.08, -0.12)], d)


def _lid_edge(opened):
    angle = math.radians(110 * opened)
    return -0.28 - 0.18 * math.cos(angle), -0.34 + 0.22 * math.cos(angle) - 0.16 * math.sin(angle)


def _draw_book(pen, c, d, l, opened):
    pen.box(-0.04, -0.44, 0.5, 0.46, d)
    pen.box(-0.02, -0.42, 0.47, 0.42, _PAPER)
    for k in range(5):
        pen.box(0.06, -0.3 + 0.14 * k, 0.4, -0.27 + 0.14 * k, (120, 116, 110))
    x = -0.02 + 0.5 * math.cos(math.pi * opened)  # the free edge of the cover
    rise = 0.1 * math.sin(math.pi * opened)
    cover = [(-0.02, -0.44), (x, -0.44 - rise), (x, 0.46 - rise), (-0.02, 0.46)]
    if opened < 0.5:
        pen.polygon(cover, c)
        if opened < 0.3:
            width = x + 0.02
            pen.box(-0.02, -0.44, 0.06, 0.46, d)
            pen.box(0.02 + 0.3 * width, -0.26 - rise / 2, 0.02 + 0.8 * width, -0.12 - rise / 2, l)
    else:
        pen.polygon(cover, c)
        inner = x + 0.04
        pen.polygon([(-0.04, -0.4), (inner, -0.4 - rise), (inner, 0.42 - rise), (-0.04, 0.42)], _PAPER)
        if opened > 0.7:
            for k in range(5):
                pen.box(0.85 * inner, -0.3 + 0.14 * k, -0.1, -0.27 + 0.14 * k, (120, 116, 110))


def _draw_phone(pen, c, d, l, opened):
    pen.box(-0.27, -0.5, 0.27, 0.5, c, radius=0.09)
    pen.box(-0.2, -0.4, 0.2, 0.38, (24, 28, 40), radius=0.03)
    for row in range(3):
        for column in range(2):
            pen.box(-0.13 + 0.16 * column, -0.3 + 0.2 * row, -0.03 + 0.16 * column, -0.2 + 0.2 * row, l)
    pen.ellipse(0, 0.44, 0.035, 0.035, _DARK)


def _draw_knife(pen, c, d, l, opened):
    pen.polygon([(-0.1, 0.08), (-0.1, -0.3), (0.02, -0.5), (0.1, -0.34), (0.1, 0.08)], _STEEL)
    pen.line([(0.05, -0.36), (0.05, 0.06)], (232, 236, 240), 0.04)
    pen.box(-0.13, 0.06, 0.13, 0.12, _DARK)
    pen.box(-0.1, 0.1, 0.1, 0.5, c, radius=0.05)
    pen.box(-0.02, 0.2, 0.02, 0.4, d)


def _draw_pan(pen, c, d, l, opened):
    pen.box(-0.07, 0.1, 0.07, 0.5, _DARK, radius=0.05)
    pen.ellipse(0, -0.15, 0.35, 0.35, c)
    pen.ellipse(0, -0.15, 0.27, 0.27, _DARK)
    pen.ellipse(-0.06, -0.2, 0.13, 0.12, (66, 64, 70))


def _draw_scissors(pen, c, d, l, opened):
    spread = 9 + 30 * opened
    for side in (-1, 1):
        angle = math.radians(side * spread)
        sin, cos = math.sin(angle), math.cos(angle)
        pen.polygon([(0.05 * cos, 0.05 * sin), (0.52 * sin, -0.5 * cos), (-0.05 * cos, -0.05 * sin)], _STEEL)
        x, y = -0.3 * sin - side * 0.07, 0.3 * cos
        pen.line([(0, 0), (x, y - 0.08)], c, 0.08)
        pen.ring(x, y, 0.14, 0.17, c, 0.075)
    pen.ellipse(0, 0, 0.05, 0.05, _DARK)


def _draw_pot(pen, c, d, l, opened):
    pen.box(-0.5, -0.02, 0.5, 0.1, _DARK, radius=0.05)
    pen.box(-0.38, -0.12, 0.38, 0.46, c, radius=0.08)
    pen.box(-0.3, 0.0, -0.2, 0.36, l, radius=0.04)
    pen.ellipse(0, -0.12, 0.38, 0.12, d)
    if opened > 0.05:
        pen.ellipse(0, -0.11, 0.32, 0.085, _DARK)
    x, y, tilt = _pot_lid(opened)
    sin, cos = math.sin(tilt), math.cos(tilt)
    dome = [(-0.38, 0.02), (-0.25, -0.1), (0.0, -0.15), (0.25, -0.1), (0.38, 0.02), (0.2, 0.07), (-0.2, 0.07)]
    pen.polygon([(x + a * cos - b * sin, y + a * sin + b * cos) for a, b in dome], l if opened > 0.05 else d)
    pen.ellipse(x + 0.17 * sin, y - 0.17 * cos, 0.06, 0.06, _DARK)


def _pot_lid(opened):
    return 0.34 * opened, -0.14 - 0.24 * math.sin(math.pi * opened) + 0.3 * opened**2, 1.25 * opened


@dataclass(frozen=True)
class Noun:
    """How one kind of object looks and what can be done with it other than moving it."""

    draw: Callable
    size: float  # longest side, frame heights
    lies_flat: bool = False  # at any angle
    open_grip: Callable[[float], tuple[float, float]] | None = None  # where the hand holds it while opening


NOUNS = {
    "cup": Noun(_draw_cup, 0.38),
    "bottle": Noun(_draw_bottle, 0.55),
    "ball": Noun(_draw_ball, 0.38),
    "box": Noun(_draw_box, 0.46, open_grip=lambda o: (_lid_edge(o)[0] + 0.74, _lid_edge(o)[1] + 0.03)),
    "book": Noun(_draw_book, 0.48, open_grip=lambda o: (-0.02 + 0.5 * math.cos(math.pi * o), 0.2)),
    "phone": Noun(_draw_phone, 0.48, lies_flat=True),
    "knife": Noun(_draw_knife, 0.58, lies_flat=True),
    "pan": Noun(_draw_pan, 0.55, lies_flat=True),
    "scissors": Noun(_draw_scissors, 0.50, lies_flat=True, open_grip=lambda o: (0.12 + 0.2 * o, 0.36)),
    "pot": Noun(_draw_pot, 0.48, open_grip=lambda o: (_pot_lid(o)[0] + 0.1, _pot_lid(o)[1])),
}
