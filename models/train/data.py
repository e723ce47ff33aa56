"""Procedural pictures with captions: "large striped red star on dotted blue".

Everything is drawn from signed distances in one torch batch, so a batch of a
few hundred pictures takes a second or two on one core and depends on the seed
alone.  Run as a script to look at a sheet:  python data.py sheet.png
"""
import math
import sys
from typing import NamedTuple

import torch

SHAPES = ["circle", "square", "triangle", "cross", "ring", "star", "diamond", "bar", "moon", "heart"]
COLOURS = {  # RGB, 0..1
    "red": (0.86, 0.13, 0.13), "green": (0.13, 0.65, 0.20), "blue": (0.12, 0.28, 0.85),
    "yellow": (0.96, 0.86, 0.15), "purple": (0.55, 0.15, 0.70), "orange": (0.96, 0.52, 0.08),
    "white": (0.94, 0.94, 0.92), "black": (0.09, 0.09, 0.11),
}
TEXTURES = ["smooth", "striped", "dotted", "checked"]
SIZES = ["small", "large"]
MAX_TOKENS = 8


class Scenes(NamedTuple):
    """Which pictures are drawn; lengths in half picture sides, turn in radians."""

    small: tuple[float, float]  # range of radii
    large: tuple[float, float]
    shift: float  # the centre lies within +- this
    turn: float
    named: float  # probability that the caption names the size or a texture
    silent: bool  # what the caption does not name is plain: large and smooth


VARIED = Scenes((0.42, 0.48), (0.64, 0.72), 0.18, 0.2, 0.7, False)
PLAIN = Scenes((0.44, 0.48), (0.66, 0.70), 0.06, 0.05, 0.35, True)
# A word after "on" describes the ground and has its own row ("on blue"): a bag
# of words could not tell "red star on blue" from "blue star on red".
VOCABULARY = ["<pad>", "on", *SIZES, *SHAPES, *TEXTURES, *COLOURS,
              *["on " + w for w in TEXTURES], *["on " + w for w in COLOURS]]
WORD_ID = {word: i for i, word in enumerate(VOCABULARY)}


def box(x, y, a, b):
    """Signed distance to the box |x| <= a, |y| <= b."""
    dx, dy = x.abs() - a, y.abs() - b
    outside = torch.hypot(dx.clamp(min=0), dy.clamp(min=0))
    return outside + torch.maximum(dx, dy).clamp(max=0)


def distance(shape, x, y):
    """Signed distance (negative inside) to a shape of radius about 1; y points up."""
    r = torch.hypot(x, y)
    if shape == "circle":
        return r - 0.95
    if shape == "square":
        return box(x, y, 0.8, 0.8)
    if shape == "triangle":
        return torch.maximum(x.abs() * 0.866 + y * 0.5, -y) - 0.55
    if shape == "cross":
        return torch.minimum(box(x, y, 1.0, 0.32), box(x, y, 0.32, 1.0))
    if shape == "ring":
        return (r - 0.75).abs() - 0.24
    if shape == "star":
        angle = torch.remainder(torch.atan2(x, y) + math.pi / 5, 2 * math.pi / 5) - math.pi / 5
        px, py = r * angle.sin().abs(), r * angle.cos()
        # Edge from the tip (0, 1.08) to the notch between two tips.
        tip, notch = (0.0, 1.08), (0.46 * math.sin(math.pi / 5), 0.46 * math.cos(math.pi / 5))
        ex, ey = notch[0] - tip[0], notch[1] - tip[1]
        return ((px - tip[0]) * -ey + (py - tip[1]) * ex) / math.hypot(ex, ey)
    if shape == "diamond":
        return (x.abs() * 1.5 + y.abs() - 1.05) / 1.8
    if shape == "bar":
        return box(x, y, 1.05, 0.38)
    if shape == "moon":
        return torch.maximum(r - 0.95, 0.78 - torch.hypot(x - 0.45, y - 0.15))
    if shape == "heart":
        x, y = x.abs() / 1.7, y / 1.7 + 0.55
        round_part = torch.hypot(x - 0.25, y - 0.75) - math.sqrt(2) / 4
        s = 0.5 * (x + y).clamp(min=0)
        sharp = torch.minimum(torch.hypot(x, y - 1), torch.hypot(x - s, y - s)) * torch.sign(x - y)
        return 1.7 * torch.where(x + y > 1, round_part, sharp)
    raise ValueError(shape)


def texture(kind, x, y, period, phase):
    """Pattern in -1..1; kind [n] indexes TEXTURES, x and y [n,h,w], period [n,1,1]."""
    kind = kind[:, None, None]
    w = 2 * math.pi / period
    sx, sy = torch.sin(w * x + phase), torch.sin(w * y + phase)
    striped = (2.5 * sx).clamp(-1, 1)
    dotted = 2 * (3.0 * (sx * sy - 0.25)).clamp(0, 1) - 1
    checked = (5.0 * torch.sin(w / 2 * x + phase) * torch.sin(w / 2 * y + phase)).clamp(-1, 1)
    return torch.where(kind == 1, striped, torch.where(kind == 2, dotted, (kind == 3) * checked))


def draw(n, seed, size=128, scenes=PLAIN):
    """Return pictures [n,3,size,size] in -1..1 and word ids [n,MAX_TOKENS] (padded with 0)."""
    g = torch.Generator().manual_seed(seed)

    def uniform(low, high):
        return low + (high - low) * torch.rand(n, 1, 1, generator=g)

    def pick(count):
        return torch.randint(count, (n,), generator=g)

    palette = torch.tensor(list(COLOURS.values()))
    shape, big = pick(len(SHAPES)), pick(2)
    colour = pick(len(COLOURS))
    ground = (colour + 1 + pick(len(COLOURS) - 1)) % len(COLOURS)  # never the same
    kind, ground_kind = pick(len(TEXTURES)), pick(len(TEXTURES))
    keep = torch.rand(n, 3, generator=g) < scenes.named  # size, texture, texture of the ground
    if scenes.silent:
        big, kind, ground_kind = big.where(keep[:, 0], 1), kind.where(keep[:, 1], 0), ground_kind.where(keep[:, 2], 0)

    axis = (torch.arange(size) + 0.5) / size * 2 - 1
    y, x = torch.meshgrid(-axis, axis, indexing="ij")
    big3 = big[:, None, None]
    radius = torch.where(big3 == 1, uniform(*scenes.large), uniform(*scenes.small))
    cx, cy = uniform(-scenes.shift, scenes.shift), uniform(-scenes.shift, scenes.shift)
    turn = uniform(-scenes.turn, scenes.turn)
    ux = ((x - cx) * turn.cos() - (y - cy) * turn.sin()) / radius
    uy = ((x - cx) * turn.sin() + (y - cy) * turn.cos()) / radius
    d, shadow = torch.empty_like(ux), torch.empty_like(ux)
    for i, name in enumerate(SHAPES):
        rows = shape == i
        d[rows] = distance(name, ux[rows], uy[rows])
        shadow[rows] = distance(name, ux[rows] - 0.12, uy[rows] + 0.14)
    pixels = radius * size / 2  # pixels per unit of d
    alpha = (0.5 - d * pixels).clamp(0, 1)  # one pixel wide edge
    shadow = 0.55 * torch.sigmoid(-shadow * 9)

    tilt = uniform(-0.25, 0.25)
    gx, gy = x * tilt.cos() - y * tilt.sin(), x * tilt.sin() + y * tilt.cos()
    light = uniform(0, 2 * math.pi)
    slope = x * light.cos() + y * light.sin()
    ground_tone = 1 + 0.20 * slope + 0.22 * texture(
        ground_kind, gx, gy, uniform(0.38, 0.44), uniform(0, 2 * math.pi))
    rim = 0.30 * torch.exp(-((d + 0.10) / 0.07) ** 2)  # a dark line just inside the edge
    tone = 1.05 + 0.22 * (ux * light.cos() + uy * light.sin()) - rim + 0.30 * texture(
        kind, ux * radius, uy * radius, uniform(0.30, 0.34), uniform(0, 2 * math.pi))

    def paint(index, tone):
        base = palette[index] + 0.05 * torch.randn(n, 3, generator=g)
        base = base.clamp(0.06, 0.96)[:, :, None, None]
        bright, dark = (tone[:, None] - 1).clamp(min=0), tone[:, None].clamp(max=1)
        return base * dark + bright * (0.25 + 0.75 * (1 - base)) * 0.8

    back = paint(ground, ground_tone) * (1 - shadow[:, None])
    picture = back * (1 - alpha[:, None]) + paint(colour, tone) * alpha[:, None]

    ids = torch.zeros(n, MAX_TOKENS, dtype=torch.long)
    colours = list(COLOURS)
    for i in range(n):
        words = [SIZES[big[i]]] if keep[i, 0] else []
        words += [TEXTURES[kind[i]]] if keep[i, 1] else []
        words += [colours[colour[i]], SHAPES[shape[i]], "on"]
        words += ["on " + TEXTURES[ground_kind[i]]] if keep[i, 2] else []
        words += ["on " + colours[ground[i]]]
        ids[i, :len(words)] = torch.tensor([WORD_ID[w] for w in words])
    return picture.clamp(0, 1) * 2 - 1, ids


def sheet(pictures, columns=8):
    """Tile pictures [n,3,h,w] in -1..1 into one PIL image."""
    from PIL import Image
    n, _, h, w = pictures.shape
    grid = torch.zeros(3, -(-n // columns) * h, columns * w)
    for i, p in enumerate(pictures):
        r, c = divmod(i, columns)
        grid[:, r * h:(r + 1) * h, c * w:(c + 1) * w] = p
    return Image.fromarray(((grid.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).numpy())


if __name__ == "__main__":
    pictures, ids = draw(64, seed=0)
    sheet(pictures).save(sys.argv[1])
    for row in ids[:8]:
        print(" ".join(VOCABULARY[i].removeprefix("on ") if i else "" for i in row).strip())
