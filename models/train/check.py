"""Load each model offline, draw a sample grid, and print PSNR against the 50-step picture.

    python check.py models/shapes-unet models/shapes-mmdit --grids DIR

PSNR in dB over 128x128 RGB in 0..1, mean over 8 captions; one seed a caption.
"""
import argparse
import sys
import time
from pathlib import Path

import diffusers
import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from exec.models import embeds_from_words, load_pipeline

CAPTIONS = ["red star on blue", "large striped green heart on checked white", "small yellow circle on purple",
            "large dotted orange ring on striped black", "smooth white moon on dotted blue",
            "large checked purple square on smooth yellow", "blue cross on striped orange",
            "small black triangle on dotted green"]


def generate(pipe, directory, captions, steps, guidance, seed=0):
    """Pictures [n,128,128,3] in 0..1; caption i starts from the noise of seed + i."""
    generators = [torch.Generator().manual_seed(seed + i) for i in range(len(captions))]
    return pipe(**embeds_from_words(str(directory), captions), num_inference_steps=steps, guidance_scale=guidance,
                height=128, width=128, generator=generators, output_type="np").images


def psnr(a, b):
    """Mean over pictures of the peak signal-to-noise ratio in dB."""
    return float(np.mean(-10 * np.log10(((a - b) ** 2).mean((1, 2, 3)))))


def tile(pictures, columns):
    n, h, w, _ = pictures.shape
    rows = pictures.reshape(n // columns, columns, h, w, 3).transpose(0, 2, 1, 3, 4)
    return Image.fromarray((rows.reshape(-1, columns * w, 3) * 255).round().astype(np.uint8))


@torch.no_grad()
def forward_ms(pipe):
    """Median milliseconds of one batch-1 forward on one thread, 64x64 latents, float32."""
    torch.set_num_threads(1)
    z, t = torch.randn(1, 4, 64, 64), torch.tensor([500.0])
    prompt, pooled = torch.randn(1, 8, 64), torch.randn(1, 64)
    spent = []
    for _ in range(25):
        start = time.perf_counter()
        if hasattr(pipe, "unet"):
            pipe.unet(z, t, prompt, added_cond_kwargs={"text_embeds": pooled, "time_ids": torch.ones(1, 6)})
        else:
            pipe.transformer(z, prompt, pooled, t)
        spent.append(time.perf_counter() - start)
    return 1e3 * float(np.median(spent))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directories", type=Path, nargs="+")
    parser.add_argument("--grids", type=Path, help="write NAME.png here")
    parser.add_argument("--guidance", type=float, default=4.0)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for directory in args.directories:
        pipe = load_pipeline(str(directory))
        size = sum(f.stat().st_size for f in directory.rglob("*") if f.is_file()) / 1e6
        print(f"{directory.name}: {type(pipe).__name__}, {size:.1f} MB")

        def run(steps, seed=0, pipe=pipe, directory=directory):
            return generate(pipe, directory, CAPTIONS, steps, args.guidance, seed)

        variants = [("own scheduler", pipe.scheduler)]
        if hasattr(pipe, "unet"):
            variants.append(("Euler", diffusers.EulerDiscreteScheduler.from_config(pipe.scheduler.config)))
        shown = []
        for name, scheduler in variants:
            pipe.scheduler = scheduler
            best = run(50)
            cells = [f"{steps} steps {psnr(run(steps), best):.1f}" for steps in (6, 12, 25)]
            other = run(50, seed=100)
            print(f"  {name}, PSNR to 50 steps: {', '.join(cells)}, other seed {psnr(other, best):.1f}", flush=True)
            shown += [best, other][:2 if name == "own scheduler" else 1]
        if args.grids:
            tile(np.concatenate(shown), 8).save(args.grids / f"{directory.name}.png", optimize=True)
        print(f"  one forward {forward_ms(pipe):.0f} ms (one thread, batch 1)", flush=True)


if __name__ == "__main__":
    main()
