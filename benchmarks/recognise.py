"""Do the shipped models draw what the caption says? A small classifier, trained on drawn pictures only, reads their images.

    python benchmarks/recognise.py [--models shapes-unet shapes-mmdit] [--images 80] [--steps 25] [--out sheet.png] [--json]

The classifier is trained here, in about a minute of one core, on pictures of models/train/data.py of both kinds
(plain and varied) and never on an image of a model. It tells the shape (of 10), its colour and the ground's colour
(of 8 each). Captions run through all shapes equally; they name no texture and no size.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, cross_entropy

from exec.models import load_pipeline
from polyrhythm.local import model_directory

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "models" / "train"))
from check import generate
from data import COLOURS, PLAIN, SHAPES, VARIED, WORD_ID, draw, sheet

HEADS = {"shape": SHAPES, "colour": list(COLOURS), "ground": ["on " + c for c in COLOURS]}


def labels(ids: Tensor) -> Tensor:
    """(n, 3) class of shape, colour and ground named in word ids (n, T)."""
    found = [(ids[:, :, None] == torch.tensor([WORD_ID[w] for w in words])).any(1) for words in HEADS.values()]
    return torch.stack([f.int().argmax(1) for f in found], 1)


def classifier() -> nn.Sequential:
    """(n, 3, 64, 64) pictures in -1..1 to the logits of all heads, side by side."""

    def level(a: int, b: int) -> list[nn.Module]:
        return [nn.Conv2d(a, b, 3, padding=1, stride=2), nn.BatchNorm2d(b), nn.ReLU()]

    total = sum(len(words) for words in HEADS.values())
    layers = [*level(3, 32), *level(32, 64), *level(64, 96), *level(96, 128)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.2), nn.Linear(128 * 16, total))


def correct(net: nn.Module, pictures: Tensor, truth: Tensor) -> Tensor:
    """(n, 3) whether shape, colour and ground of the pictures (n, 3, 128, 128) are read as the caption has them."""
    with torch.no_grad():
        logits = net(avg_pool2d(pictures, 2)).split([len(words) for words in HEADS.values()], dim=1)
    return torch.stack([part.argmax(1) for part in logits], 1) == truth


def train(batches: int = 32, epochs: int = 8, seed: int = 0) -> nn.Module:
    """A classifier of drawn pictures, with noise and contrast varied so that it does not rely on clean pixels."""
    torch.manual_seed(seed)
    drawn = [draw(256, 70_000 + i, size=64, scenes=(PLAIN, VARIED)[i % 2]) for i in range(batches)]
    pictures, truth = torch.cat([p for p, _ in drawn]), torch.cat([labels(ids) for _, ids in drawn])
    net, steps, step = classifier(), epochs * len(pictures) // 64, 0
    optimiser = torch.optim.AdamW(net.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, steps)
    for _ in range(epochs):
        for rows in torch.randperm(len(pictures)).split(64)[: steps // epochs]:
            x = pictures[rows] * (0.8 + 0.3 * torch.rand(len(rows), 1, 1, 1))
            x = x + 0.15 * torch.rand(len(rows), 1, 1, 1) * torch.randn_like(x)
            parts = net(x).split([len(words) for words in HEADS.values()], dim=1)
            loss = sum((cross_entropy(p, t) for p, t in zip(parts, truth[rows].T, strict=True)), torch.zeros(()))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            step += 1
    return net.eval()


def captions(count: int) -> tuple[list[str], Tensor]:
    """`count` captions "red star on blue" through all shapes in turn, and their (count, 3) classes."""
    g, rows = torch.Generator().manual_seed(0), []
    for i in range(count):
        colour = int(torch.randint(len(COLOURS), (), generator=g))
        ground = (colour + 1 + int(torch.randint(len(COLOURS) - 1, (), generator=g))) % len(COLOURS)
        rows.append((i % len(SHAPES), colour, ground))
    names = list(COLOURS)
    return [f"{names[c]} {SHAPES[s]} on {names[b]}" for s, c, b in rows], torch.tensor(rows)


def images(model: str, texts: list[str], steps: int, guidance: float) -> Tensor:
    """(n, 3, 128, 128) in -1..1: the model's picture of every caption, each from a noise of its own."""
    directory = Path(model_directory(model))
    pipe, made = load_pipeline(str(directory)), []
    for start in range(0, len(texts), 10):
        made.append(generate(pipe, directory, texts[start : start + 10], steps, guidance, seed=start))
        print(f"{model}: {start + len(made[-1])} of {len(texts)} images", file=sys.stderr, flush=True)
    return torch.from_numpy(np.concatenate(made)).permute(0, 3, 1, 2) * 2 - 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["shapes-unet", "shapes-mmdit"])
    parser.add_argument("--images", type=int, default=80)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--guidance", type=float, default=4.0)
    parser.add_argument("--out", type=Path, help="write the first 10 images of every model here, a row each")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)

    net, texts_of = train(), captions(args.images)
    right: dict[str, Any] = {}
    for name, scenes in (("drawn, plain", PLAIN), ("drawn, varied", VARIED)):
        pictures, ids = draw(400, 1, scenes=scenes)
        right[name] = correct(net, pictures, labels(ids)), labels(ids)
    rows = []
    for model in args.models:
        made = images(model, texts_of[0], args.steps, args.guidance)
        right[model] = correct(net, made, texts_of[1]), texts_of[1]
        rows.append(made[: len(SHAPES)])
    if args.out:
        sheet(torch.cat(rows), columns=len(SHAPES)).save(args.out, optimize=True)
    document = {
        name: {head: round(float(ok[:, i].float().mean()), 3) for i, head in enumerate(HEADS)}
        | {"all three": round(float(ok.all(1).float().mean()), 3)}
        | {"shapes": {s: round(float(ok[truth[:, 0] == i, 0].float().mean()), 2) for i, s in enumerate(SHAPES)}}
        for name, (ok, truth) in right.items()
    }
    if args.json:
        print(json.dumps(document, indent=1))
        return
    print("| pictures | shape | colour | ground | all three | worst shape |\n|---|---|---|---|---|---|")
    for name, row in document.items():
        shapes: Any = row["shapes"]
        worst = min(shapes, key=lambda s: shapes[s])
        cells = [f"{100 * row[key]:.1f} %" for key in (*HEADS, "all three")]
        print(f"| {name} | {' | '.join(cells)} | {worst} {100 * shapes[worst]:.0f} % |")


if __name__ == "__main__":
    main()
