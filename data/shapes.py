"""A built-in data set: textured shapes on varied backgrounds, each drawn from its index alone."""

import math

import numpy as np
from PIL import Image, ImageDraw

Points = list[tuple[float, float]]


def _circle(radius: float = 1.0, num_points: int = 48) -> Points:
    turns = [2 * math.pi * step / num_points for step in range(num_points)]
    return [(radius * math.cos(turn), radius * math.sin(turn)) for turn in turns]


def _star(num_rays: int, inner: float) -> Points:
    turns = [math.pi * step / num_rays for step in range(2 * num_rays)]
    radii = [inner if step % 2 else 1.0 for step in range(2 * num_rays)]
    return [(r * math.cos(turn), r * math.sin(turn)) for r, turn in zip(radii, turns, strict=True)]


def _heart() -> Points:
    turns = [2 * math.pi * step / 48 for step in range(48)]
    wave = [
        13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
        for t in turns
    ]
    return [(math.sin(t) ** 3, -height / 16 - 0.1) for t, height in zip(turns, wave, strict=True)]


_S = 0.75
_T = 0.35
# Class name -> outline in the unit circle; a ring also has a hole.
OUTLINES: dict[str, Points] = {
    "circle": _circle(),
    "square": [(-_S, -_S), (_S, -_S), (_S, _S), (-_S, _S)],
    "triangle": _circle(num_points=3),
    "star": _star(5, 0.45),
    "cross": [
        (-_T, -1), (_T, -1), (_T, -_T), (1, -_T), (1, _T), (_T, _T),
        (_T, 1), (-_T, 1), (-_T, _T), (-1, _T), (-1, -_T), (-_T, -_T),
    ],
    "ring": _circle(),
    "heart": _heart(),
    "hexagon": _circle(num_points=6),
    "bar": [(-1, -0.3), (1, -0.3), (1, 0.3), (-1, 0.3)],
    "gear": _star(9, 0.7),
}  # fmt: skip
CLASSES = list(OUTLINES)


def draw_shape(index: int, size: int, stream: int = 0) -> tuple[Image.Image, int]:
    """Draw picture `index` of a stream, RGB size x size; its class is `index` modulo ten."""
    random = np.random.default_rng((stream, index))
    label = index % len(CLASSES)
    colours = _distinct_colours(random)
    background = _texture(random, size, colours[0], colours[1], contrast=0.3)
    foreground = _texture(random, size, colours[2], colours[3], contrast=1.0)
    cover = _cover(random, CLASSES[label], size)[..., None]
    picture = background * (1 - cover) + foreground * cover
    return Image.fromarray(picture.round().astype(np.uint8)), label


def _distinct_colours(random: np.random.Generator) -> np.ndarray:
    """Colours (4, 3): two of the background, two of the shape; the first of each differ."""
    ground = random.uniform(20, 235, 3)
    shape = (ground + random.uniform(70, 185, 3)) % 256
    colours = [ground, random.uniform(0, 255, 3), shape, random.uniform(0, 255, 3)]
    return np.stack(colours).astype(np.float32)


def _texture(
    random: np.random.Generator, size: int, first: np.ndarray, second: np.ndarray, contrast: float
) -> np.ndarray:
    """Stripes, checks, dots or a gradient of two colours at any angle: (size, size, 3), 0-255."""
    turn = random.uniform(0, math.pi)
    axis = np.linspace(0, 1, size, dtype=np.float32)
    x = axis[None, :] * math.cos(turn) + axis[:, None] * math.sin(turn)
    y = axis[:, None] * math.cos(turn) - axis[None, :] * math.sin(turn)
    waves = 2 * math.pi * random.uniform(1.5, 3.5)
    kind = random.integers(4)
    if kind == 0:
        share = np.sin(waves * x)
    elif kind == 1:
        share = np.sin(waves * x) * np.sin(waves * y)
    elif kind == 2:
        share = np.cos(waves * x) + np.cos(waves * y) - 0.5
    else:
        share = (x - x.mean()) / 4  # still smooth after the gain below
    share = contrast * (0.5 + 0.5 * np.clip(4 * share, -1, 1))[..., None]
    return first * (1 - share) + second * share


def _cover(random: np.random.Generator, name: str, size: int) -> np.ndarray:
    """Share of each pixel that the rotated shape covers: (size, size), 0 to 1."""
    scale = 2  # drawn larger, then reduced, for smooth edges
    canvas = Image.new("L", (size * scale, size * scale))
    turn = random.uniform(0, 2 * math.pi)
    radius = random.uniform(0.26, 0.4) * size * scale
    centre = random.uniform(0.4, 0.6, 2) * size * scale
    draw = ImageDraw.Draw(canvas)
    for outline, fill in ((OUTLINES[name], 255), (_circle(0.5) if name == "ring" else [], 0)):
        if outline:
            draw.polygon([_place(point, turn, radius, centre) for point in outline], fill=fill)
    small = canvas.resize((size, size), Image.Resampling.BOX)
    return np.asarray(small, dtype=np.float32) / 255


def _place(
    point: tuple[float, float], turn: float, radius: float, centre: np.ndarray
) -> tuple[float, float]:
    x = point[0] * math.cos(turn) - point[1] * math.sin(turn)
    y = point[0] * math.sin(turn) + point[1] * math.cos(turn)
    return float(centre[0] + radius * x), float(centre[1] + radius * y)
