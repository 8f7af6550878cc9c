"""Drawing of the synthetic first-person world: the table, the hand, and each action as a function of its progress.

Every picture is drawn with Pillow at SUPERSAMPLE times the final size and reduced at the end, so that cheap aliased
drawing becomes smooth. Lengths are in units of the frame height; x grows to the right, y downwards (towards the camera
wearer); angles are degrees clockwise. `synthetic_world.py` decides what happens when; this file only draws it.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageDraw

from .synthetic_objects import NOUNS, Pen, SceneObject, shade

SUPERSAMPLE = 2
WORLD_WIDTH, WORLD_HEIGHT = 2.3, 1.4  # where objects are; the camera sees 1 x 1
MARGIN = 0.45  # drawn around it, for a camera that looks at an object near the edge
HAND_SIZE = 1.45  # the arm is near the camera
APPROACH = 0.17  # share of an action in which the hand comes into view; the same share at the end to leave it


@dataclass(frozen=True)
class ObjectState:
    """Where an object is and how; `opened` is 0 or 1 at rest, between in an action."""

    x: float
    y: float
    angle: float = 0.0
    opened: float = 0.0
    covered: bool = False
    held: bool = False


@dataclass(frozen=True)
class Pose:
    """One moment of one action: the acted-on object, the hand, and the cloth or tool it may carry."""

    state: ObjectState
    lift: float = 0.0  # 0 on the table, 1 right before the camera
    hand: tuple[float, float] = (0.0, 0.0)  # fingertips of the right hand
    hand_shape: str = "grip"
    left_hand: tuple[float, float] | None = None  # where the other one holds on to the object
    cloth: tuple[float, float] | None = None


# ── one action ─────────────────────────────────────────────────────────────────────────────────────────────────────


def smoothstep(x: float) -> float:
    x = min(max(x, 0.0), 1.0)
    return x * x * (3.0 - 2.0 * x)


def _mix(a, b, m):
    return a * (1.0 - m) + b * m  # exact at both ends


def depth_scale(y: float) -> float:
    """Things near the camera wearer (large y) look larger."""
    return 0.82 + 0.36 * (y - 0.3) / 0.7


def _pick_up(noun, a, b, m, camera_y):
    # Up from the table, then down out of the frame, close to the camera.
    out = camera_y + 1.6
    y = _mix(a.y, out, m * m) - 0.22 * math.sin(math.pi * min(m * 1.25, 1.0))
    x = _mix(a.x, a.x + 0.05, m)
    return Pose(replace(a, x=x, y=y, held=False), lift=m, hand=(x + 0.06, y + 0.12))


def _slide(noun, a, b, m, camera_y):
    state = replace(a, x=_mix(a.x, b.x, m), y=_mix(a.y, b.y, m))
    return Pose(state, hand=(state.x + 0.05, state.y + 0.04), hand_shape="flat")


def _open(noun, a, b, m, camera_y):
    state = replace(a, opened=_mix(a.opened, b.opened, m))
    gx, gy = NOUNS[noun].open_grip(state.opened)
    size = NOUNS[noun].size * depth_scale(a.y)
    turn = math.radians(a.angle)
    gx, gy = gx * math.cos(turn) - gy * math.sin(turn), gx * math.sin(turn) + gy * math.cos(turn)
    holding = (state.x - 0.42 * size, state.y + 0.3 * size)
    return Pose(state, hand=(state.x + gx * size, state.y + gy * size), left_hand=holding)


def _cover(noun, a, b, m, camera_y):
    x, y = _mix(a.x + 0.1, a.x, m), _mix(camera_y + 1.4, a.y, m)
    return Pose(replace(a, covered=False), hand=(x + 0.05, y + 0.12), cloth=(x, y))


def _shake(noun, a, b, m, camera_y):
    # m is uniform in time here; a whole number of swings, so that backwards looks the same as forwards.
    envelope = smoothstep(min(m, 1 - m) * 6)
    swing = envelope * math.cos(2 * math.pi * 3 * (m - 0.5))
    state = replace(a, x=a.x + 0.12 * swing, y=a.y - 0.14 * envelope, angle=a.angle + 26 * swing)
    return Pose(state, lift=0.3 * envelope, hand=(state.x + 0.04, state.y + 0.06), hand_shape="fist")


def _move_about(noun, a, b, m, camera_y):
    # Left, right, left again and back. Any two moments can be one of each side: their order tells nothing.
    state = replace(a, x=a.x - 0.24 * math.sin(3 * math.pi * m))
    return Pose(state, hand=(state.x + 0.05, state.y + 0.04), hand_shape="flat")


def _move_about_mirrored(noun, a, b, m, camera_y):
    state = replace(a, x=a.x + 0.24 * math.sin(3 * math.pi * m))
    return Pose(state, hand=(state.x + 0.05, state.y + 0.04), hand_shape="flat")


def _tap(noun, a, b, m, camera_y):
    height = abs(math.sin(math.pi * 3 * (m - 0.5)))
    return Pose(a, hand=(a.x + 0.02, a.y - 0.04 + 0.26 * height), hand_shape="point")


# Fingertips of the thumb and of the fingers, from the middle of the hand's front edge, in hand sizes.
HAND_SHAPES = {
    "grip": ((-0.085, 0.05), ((-0.03, 0.02), (0.015, 0.015), (0.06, 0.035))),
    "point": ((-0.05, 0.13), ((-0.02, 0.0), (0.03, 0.11), (0.06, 0.12))),
    "flat": ((-0.17, 0.09), ((-0.1, 0.02), (-0.035, -0.01), (0.035, -0.01), (0.1, 0.03))),
    "fist": ((-0.07, 0.1), ((-0.045, 0.1), (0.0, 0.095), (0.045, 0.1), (0.085, 0.11))),
}


@dataclass(frozen=True)
class Verb:
    """One narrated verb. A `reversed` verb is its base played backwards, to the frame."""

    base: Callable
    phrases: tuple[str, ...]
    reversed: bool = False
    twin: str | None = None
    is_steady: bool = False  # uniform in time instead of slow-fast-slow


VERBS = {
    "pick up": Verb(_pick_up, ("picks up {}", "takes {}"), twin="put down"),
    "put down": Verb(_pick_up, ("puts down {}", "places {}"), reversed=True, twin="pick up"),
    "slide left": Verb(_slide, ("slides {} to the left", "pushes {} to the left"), twin="slide right"),
    "slide right": Verb(
        _slide, ("slides {} to the right", "pushes {} to the right"), reversed=True, twin="slide left"
    ),
    "open": Verb(_open, ("opens {}",), twin="close"),
    "close": Verb(_open, ("closes {}", "shuts {}"), reversed=True, twin="open"),
    "cover": Verb(_cover, ("covers {}",), twin="uncover"),
    "uncover": Verb(_cover, ("uncovers {}",), reversed=True, twin="cover"),
    "shake": Verb(_shake, ("shakes {}",), is_steady=True),
    "tap": Verb(_tap, ("taps {}",), is_steady=True),
}


# A pair that two frames cannot tell apart, for worlds with `long_verbs`: left and right in both orders occur in both.
LONG_VERBS = {
    "rock left": Verb(_move_about, ("rocks {} to the left first",), twin="rock right", is_steady=True),
    "rock right": Verb(_move_about_mirrored, ("rocks {} to the right first",), twin="rock left", is_steady=True),
}
ALL_VERBS = VERBS | LONG_VERBS


def action_pose(
    verb: str, noun: str, before: ObjectState, after: ObjectState, progress: float, camera_y: float
) -> tuple[Pose, float]:
    """The moment `progress` in [0, 1] of an action, and how far the hand is in view (1 at the object, 0 outside).

    A reversed verb swaps before and after and runs the clock backwards, so a twin pair shows the same set of frames.
    """
    if ALL_VERBS[verb].reversed:
        before, after, progress = after, before, 1.0 - progress
    m = (progress - APPROACH) / (1 - 2 * APPROACH)
    m = min(max(m, 0.0), 1.0) if ALL_VERBS[verb].is_steady else smoothstep(m)
    reach = smoothstep(min(progress, 1 - progress) / APPROACH)
    return ALL_VERBS[verb].base(noun, before, after, m, camera_y), reach


# ── the scene ──────────────────────────────────────────────────────────────────────────────────────────────────────


def table_texture(width: int, height: int, rng: np.random.Generator) -> Image.Image:
    """A table top of `width` x `height` px: two muted colours, one of six patterns, stains, papers and a far edge."""
    dark = rng.uniform(0.28, 0.5) * np.array([255, 255, 255]) * rng.uniform(0.8, 1.0, 3)
    light = np.clip(dark * rng.uniform(1.12, 1.35) + rng.uniform(0, 25, 3), 0, 190)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32) / height
    turn = rng.uniform(0, math.pi)
    u, v = x * math.cos(turn) + y * math.sin(turn), -x * math.sin(turn) + y * math.cos(turn)
    frequency, phase = rng.uniform(3, 8), rng.uniform(0, 6)
    waves = sum(np.sin(rng.uniform(4, 14) * u + rng.uniform(4, 14) * v + rng.uniform(0, 6)) for _ in range(3))
    pattern = int(rng.integers(6))
    if pattern == 0:  # wood grain
        mix = 0.5 + 0.5 * np.sin(2 * math.pi * (frequency * u + 0.25 * waves))
    elif pattern == 1:  # boards
        mix = 0.3 * (np.floor(frequency * u) % 2) + 0.35 + 0.1 * np.sin(40 * u + waves)
    elif pattern == 2:  # checks
        mix = (np.floor(frequency * u + phase) + np.floor(frequency * v)) % 2 * 0.8
    elif pattern == 3:  # stone
        mix = 0.5 + 0.2 * waves
    elif pattern == 4:  # stripes
        mix = (np.sin(2 * math.pi * 2 * frequency * u) > 0.3) * 0.7
    else:  # dots
        mix = (((2 * frequency * u) % 1 - 0.5) ** 2 + ((2 * frequency * v) % 1 - 0.5) ** 2 < 0.06) * 0.8
    mix = mix + rng.normal(0, 0.06, (height, width))
    rgb = dark + (light - dark) * np.clip(mix, 0, 1)[..., None]
    image = Image.fromarray(rgb.astype(np.uint8))

    draw = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(2, 6))):  # mats and papers that nobody touches
        cx, cy = rng.uniform(0, width), rng.uniform(0.1 * height, height)
        side, ratio, turn = rng.uniform(0.1, 0.3) * height, rng.uniform(0.5, 1.2), rng.uniform(0, math.pi)
        corners = [(-side, -side * ratio), (side, -side * ratio), (side, side * ratio), (-side, side * ratio)]
        corners = [
            (cx + a * math.cos(turn) - b * math.sin(turn), cy + a * math.sin(turn) + b * math.cos(turn))
            for a, b in corners
        ]
        draw.polygon(corners, fill=shade(light, float(rng.uniform(0.6, 1.25))))
    wall = shade(rng.uniform(40, 170, 3), 1.0)
    draw.rectangle([0, 0, width, int(rng.uniform(0.05, 0.14) * height)], fill=wall)
    return image


class SceneRenderer:
    """Draws the frames of one scene. Sprites are kept by rounded pose, because most frames show the same ones."""

    def __init__(self, objects: Sequence[SceneObject], height: int, rng: np.random.Generator):
        self.objects = tuple(objects)
        self.height = height
        self._unit = height * SUPERSAMPLE  # drawing px per frame height
        size = [round((side + 2 * MARGIN) * self._unit) for side in (WORLD_WIDTH, WORLD_HEIGHT)]
        self._table = table_texture(*size, rng)
        skin = shade((236, 188, 150), float(rng.uniform(0.4, 1.05)))
        sleeve = tuple(int(c) for c in rng.uniform(30, 150, 3))
        self._hand_colours = (skin, sleeve)
        self._cloth_rgb = tuple(int(c) for c in rng.uniform(90, 220, 3))
        self._cloth_stripe = shade(self._cloth_rgb, 0.6)
        self._gain = self._light(rng)
        self._sprites: dict[tuple, Image.Image] = {}
        self._canvas: dict[tuple, Image.Image] = {}

    def _light(self, rng: np.random.Generator) -> np.ndarray:
        """Gain of each pixel in 1/256, (height, height, 3) float32: a gradient, a vignette and a colour cast."""
        y, x = np.mgrid[0 : self.height, 0 : self.height].astype(np.float32) / self.height - 0.5
        turn = rng.uniform(0, 2 * math.pi)
        gain = 1.0 + rng.uniform(0.1, 0.4) * (x * math.cos(turn) + y * math.sin(turn)) - 0.25 * (x * x + y * y)
        cast = rng.uniform(0.93, 1.07, 3)
        return (256 * rng.uniform(0.9, 1.1) * gain[..., None] * cast).astype(np.float32)

    # Sprites

    def _object_sprite(self, index: int, scale: float, angle: float, opened: float) -> Image.Image:
        thing = self.objects[index]
        side = max(8, 4 * round(thing.size * scale * self._unit / 4))
        angle, opened = 4 * round(angle / 4) % 360, round(opened * 12) / 12
        key = (index, side, angle, opened)
        if key not in self._sprites:
            base_key = (index, "base", opened)
            if base_key not in self._sprites:
                pen = Pen(2 * round(thing.size * self._unit))
                NOUNS[thing.noun].draw(pen, thing.rgb, shade(thing.rgb, 0.62), shade(thing.rgb, 1.35), opened)
                self._sprites[base_key] = pen.image
            sprite = self._sprites[base_key].resize((side, side), Image.Resampling.BOX)
            if angle:
                sprite = sprite.rotate(-angle, resample=Image.Resampling.BILINEAR, expand=True)
            self._sprites[key] = sprite
        return self._sprites[key]

    def _hand_sprite(self, shape: str, lean: float) -> tuple[Image.Image, tuple[float, float]]:
        """The right arm and hand, fingertips up, leaning `lean` degrees; and the fingertips' place in it, px."""
        lean = 3 * round(lean / 3)
        key = ("hand", shape, lean)
        px = self._unit * HAND_SIZE
        width, length, tip = round(0.5 * px), round(1.3 * px), 0.02
        if key not in self._sprites:
            skin, sleeve = self._hand_colours
            base = Image.new("RGBA", (width, length))
            draw = ImageDraw.Draw(base)

            def at(x, y):
                return (x * px + width / 2, (y + tip) * px)

            def finger(x0, y0, x1, y1, w, colour):
                draw.line([at(x0, y0), at(x1, y1)], fill=colour, width=round(w * px))
                for x, y in ((x0, y0), (x1, y1)):
                    (a, b), r = at(x, y), w * px / 2
                    draw.ellipse([a - r, b - r, a + r, b + r], fill=colour)

            edge = shade(skin, 0.7)
            draw.polygon([at(-0.045, 0.2), at(0.055, 0.2), at(0.11, 1.3), at(-0.09, 1.3)], fill=skin)
            draw.polygon([at(-0.07, 0.34), at(0.08, 0.34), at(0.13, 1.3), at(-0.11, 1.3)], fill=sleeve)
            draw.line([at(-0.07, 0.345), at(0.08, 0.345)], fill=shade(sleeve, 1.3), width=round(0.02 * px))
            thumb, fingers = HAND_SHAPES[shape]
            finger(*thumb, -0.04, 0.18, 0.042, skin)
            for x, y in fingers:
                finger(x, y, 0.4 * x + 0.006, 0.16, 0.042, skin)
                finger(x + 0.021, y + 0.02, 0.4 * x + 0.024, 0.12, 0.006, edge)
            draw.rounded_rectangle([at(-0.07, 0.11), at(0.085, 0.25)], radius=0.05 * px, fill=skin)
            self._sprites[key] = base.rotate(-lean, resample=Image.Resampling.BILINEAR, expand=True)
        sprite = self._sprites[key]
        turn = math.radians(lean)
        dx, dy = 0.0, -length / 2 + tip * px  # fingertips from the centre, before the lean
        tip_x, tip_y = dx * math.cos(turn) - dy * math.sin(turn), dx * math.sin(turn) + dy * math.cos(turn)
        return sprite, (sprite.width / 2 + tip_x, sprite.height / 2 + tip_y)

    def _cloth_sprite(self, scale: float) -> Image.Image:
        side = 4 * round(0.54 * scale * self._unit / 4)
        key = ("cloth", side)
        if key not in self._sprites:
            pen = Pen(side)
            top = [(-0.5, -0.34), (-0.1, -0.46), (0.4, -0.42), (0.5, 0.1)]
            pen.polygon([*top, (0.42, 0.44), (-0.05, 0.5), (-0.46, 0.38)], self._cloth_rgb)
            for k in range(3):
                pen.line([(-0.4 + 0.3 * k, -0.36), (-0.36 + 0.32 * k, 0.42)], self._cloth_stripe, 0.07)
            self._sprites[key] = pen.image
        return self._sprites[key]

    def _shadow_sprite(self, width: float) -> Image.Image:
        side = 4 * round(width * self._unit / 4)
        key = ("shadow", side)
        if key not in self._sprites:
            y, x = np.mgrid[-1 : 1 : complex(0, max(4, side // 3)), -1 : 1 : complex(0, side)]
            alpha = np.clip(1.3 - 1.3 * (x * x + y * y), 0, 1) * 105
            rgba = np.zeros((*alpha.shape, 4), np.uint8)
            rgba[..., 3] = alpha
            self._sprites[key] = Image.fromarray(rgba)
        return self._sprites[key]

    # Painting; ox, oy: the world position of the image's top left corner

    def _paste(self, image, sprite, x, y, ox, oy):
        left, top = round((x - ox) * self._unit - sprite.width / 2), round((y - oy) * self._unit - sprite.height / 2)
        image.paste(sprite, (left, top), sprite)

    def _paint_object(self, image, index, state, ox, oy, lift=0.0):
        """Draws one object with its shadow, and the cloth over it if it is covered."""
        if state.held:
            return
        size = self.objects[index].size
        scale = depth_scale(min(state.y, 1.1)) * (1.0 + 0.45 * lift)
        if lift < 0.5:
            # Standing things throw it at their foot, lying ones under themselves.
            drop = (0.15 if NOUNS[self.objects[index].noun].lies_flat else 0.42) * size * scale
            self._paste(image, self._shadow_sprite(size * scale), state.x, state.y + drop, ox, oy)
        sprite = self._object_sprite(index, scale, state.angle, state.opened)
        self._paste(image, sprite, state.x, state.y, ox, oy)
        if state.covered:
            self._paste(image, self._cloth_sprite(scale), state.x, state.y, ox, oy)

    def _paint_hand(self, image, hand, shape, reach, ox, oy, left=False):
        # The arms come from shoulders below the frame, right and left of the middle; `reach` 0 is out of view.
        side = -1 if left else 1
        hx, hy = side * (hand[0] - ox - 0.5), hand[1] - oy  # the left hand is the right one in a mirror
        hx, hy = _mix(0.25, hx, reach), _mix(1.5, hy, reach)
        lean = math.degrees(math.atan2(hx - 0.22, 1.75 - hy))
        sprite, (tx, ty) = self._hand_sprite(shape, lean)
        if left:
            sprite, tx = sprite.transpose(Image.Transpose.FLIP_LEFT_RIGHT), sprite.width - tx
        image.paste(sprite, (round((0.5 + side * hx) * self._unit - tx), round(hy * self._unit - ty)), sprite)

    def _static(self, states: Sequence[ObjectState], moving: int | None) -> Image.Image:
        """The table with every object except the moving one, far ones first; only the latest is kept."""
        key = (tuple(states), moving)
        if key not in self._canvas:
            canvas = self._table.copy()
            order = sorted((s.y, i) for i, s in enumerate(states) if i != moving)
            for _, index in order:
                self._paint_object(canvas, index, states[index], -MARGIN, -MARGIN)
            self._canvas = {key: canvas}
        return self._canvas[key]

    def draw(
        self,
        states: Sequence[ObjectState],
        camera: tuple[float, float],
        light: float = 1.0,
        moving: int | None = None,
        pose: Pose | None = None,
        reach: float = 0.0,
    ) -> np.ndarray:
        """One frame, (height, height, 3) uint8. `camera` is the world position of its top left corner."""
        ox, oy = (max(-MARGIN, min(c, limit + MARGIN - 1)) for c, limit in zip(camera, (WORLD_WIDTH, WORLD_HEIGHT)))
        left, top = round((ox + MARGIN) * self._unit), round((oy + MARGIN) * self._unit)
        image = self._static(states, moving).crop((left, top, left + self._unit, top + self._unit))
        if moving is not None:
            self._paint_object(image, moving, pose.state, ox, oy, pose.lift)
            if pose.cloth is not None:
                scale = depth_scale(min(pose.cloth[1], 1.1))
                self._paste(image, self._cloth_sprite(scale), *pose.cloth, ox, oy)
            self._paint_hand(image, pose.hand, pose.hand_shape, reach, ox, oy)
            if pose.left_hand is not None:
                self._paint_hand(image, pose.left_hand, "grip", reach, ox, oy, left=True)
        frame = np.asarray(image.reduce(SUPERSAMPLE), dtype=np.uint32)
        gain = (self._gain * np.float32(light)).astype(np.uint32)
        return np.minimum(frame * gain >> 8, 255).astype(np.uint8)
