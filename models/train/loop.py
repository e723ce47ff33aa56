"""What both trainings share: word tables, the training loop, writing the model directory."""
import argparse
import copy
import json
import math
import shutil
import time
from pathlib import Path

import torch
from data import MAX_TOKENS, WORD_ID
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from torch import nn

DROP = 0.12  # share of captions replaced by all padding: the unconditional branch


class Words(nn.Module):
    """ids [n,T] -> prompt embeddings [n,T,D] and their mean in a second table [n,P]; row 0 (padding) stays zero."""

    def __init__(self, width, pooled_width):
        super().__init__()
        self.prompt = nn.Embedding(len(WORD_ID), width, padding_idx=0)
        self.pooled = nn.Embedding(len(WORD_ID), pooled_width, padding_idx=0)

    def load(self, directory):
        """Take the tables shipped in a model directory."""
        for name, table in load_file(directory / "words.safetensors").items():
            getattr(self, name).weight.data.copy_(table)

    def forward(self, ids):
        count = (ids > 0).sum(1, keepdim=True).clamp(min=1)
        return self.prompt(ids), self.pooled(ids).sum(1) / count


def arguments(doc, lr, minutes):
    """Command line; minutes = processor time on latents of 16x16, 32x32 and 64x64."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="directory written by vae.py")
    parser.add_argument("--out", type=Path, required=True, help="model directory to write")
    parser.add_argument("--minutes", type=float, nargs=3, default=minutes, help="processor minutes a stage")
    parser.add_argument("--resume", action="store_true", help="start from the weights in --out")
    parser.add_argument("--lr", type=float, default=lr)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def levels(n, generator):
    """n noise levels in (0, 1), one from each n-th: less scatter from batch to batch than n free draws."""
    return ((torch.arange(n) + torch.rand(n, generator=generator)) / n).clamp(1e-4, 1 - 1e-4)


def train(net, words, loss_of, args, batches=(32, 16, 8), publish=None, every=300.0):
    """Train net and words; return their averaged copies.

    loss_of(net, prompt, pooled, latents, generator) -> scalar.  publish(net,
    words) is called every so many seconds with the averages so far.
    """
    both = nn.ModuleList([net, words])
    average = copy.deepcopy(both).requires_grad_(False)
    opt = torch.optim.AdamW(both.parameters(), lr=args.lr, betas=(0.9, 0.99), weight_decay=0.01)
    g = torch.Generator().manual_seed(args.seed + 1)
    # Processor time, not wall time: a busy machine must not cut the training short.
    total, step, start = 60 * sum(args.minutes), 0, time.process_time()
    end, saved, recent = start, time.time(), []
    for size, minutes, batch in zip((16, 32, 64), args.minutes, batches):
        if not minutes:
            continue
        data = load_file(args.work / f"latents-{size}.safetensors")
        end += 60 * minutes
        while (now := time.process_time()) < end:
            rows = torch.randint(len(data["ids"]), (batch,), generator=g)
            ids = data["ids"][rows]
            ids = ids * (torch.rand(batch, 1, generator=g) >= DROP)
            for group in opt.param_groups:
                group["lr"] = args.lr * min(1, (step + 1) / 100) * (0.02 + 0.98 * math.cos(math.pi / 2 * (now - start) / total) ** 2)
            with torch.autocast("cpu", torch.bfloat16):
                loss = loss_of(net, *words(ids), data["latents"][rows].float(), g)
            opt.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(both.parameters(), 1.0)
            opt.step()
            step += 1
            decay = min(0.997, (1 + step) / (10 + step))
            with torch.no_grad():
                torch._foreach_lerp_(list(average.parameters()), list(both.parameters()), 1 - decay)
            recent.append(loss.item())
            if step % 50 == 0:
                print(f"step {step} size {size} {now - start:.0f} s "
                      f"loss {sum(recent) / len(recent):.4f}", flush=True)
                recent = []
            if publish and time.time() - saved > every:
                saved = time.time()
                publish(*average)
    print(f"trained {step} steps in {(now - start) / 60:.1f} minutes", flush=True)
    return average


def write(out, pipeline, words):
    """Write pipeline (half precision), tables and vocabulary to out, in one rename."""
    fresh, old = out.with_name(out.name + ".new"), out.with_name(out.name + ".old")
    shutil.rmtree(fresh, ignore_errors=True)
    pipeline.save_pretrained(fresh)
    tables = {name: getattr(words, name).weight.detach().half().contiguous() for name in ("prompt", "pooled")}
    save_file(tables, fresh / "words.safetensors")
    spec = {"words": WORD_ID, "max_tokens": MAX_TOKENS, "pad": 0}
    (fresh / "words.json").write_text(json.dumps(spec, indent=1) + "\n")
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        out.rename(old)
    fresh.rename(out)
    shutil.rmtree(old, ignore_errors=True)


def load_vae(work):
    vae = AutoencoderKL.from_pretrained(work / "vae").half()
    vae.register_to_config(_name_or_path="")  # no path of this machine in the files
    return vae
