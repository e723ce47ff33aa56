"""Train the tiny AutoencoderKL both models share, then cache the training set as latents.

128x128 RGB <-> 64x64x4 latents (spatial factor 2).  About 2.5 minutes of
training and one of encoding on two cores.   python vae.py --work DIR

DIR gets vae/ (diffusers layout) and latents-64.safetensors (pictures of full
size, latents [n,4,64,64]), latents-32 and latents-16 (the same kind of scene
drawn at half and quarter size, for the cheap first stages); fp16, with word
ids [n,8] int64.
"""
import argparse
import time
from pathlib import Path

import torch
from data import PLAIN, VARIED, draw, sheet
from diffusers import AutoencoderKL
from safetensors.torch import save_file

SCALING = 0.5  # the standard deviation of raw latents is set to 1 / SCALING


def build():
    """One residual layer a level and no attention, so that decoding stays cheap."""
    return AutoencoderKL(
        in_channels=3, out_channels=3, latent_channels=4, sample_size=128,
        block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=8,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        mid_block_add_attention=False, scaling_factor=SCALING,
        shift_factor=0.0,  # the SD3 pipeline cannot decode with None; the mean is zero by construction
        force_upcast=False)


def train(vae, pictures, seconds):
    """Reconstruction with a little latent noise, so that the decoder forgives the denoiser's errors."""
    g = torch.Generator().manual_seed(1)
    opt = torch.optim.AdamW(vae.parameters(), lr=4e-3, betas=(0.9, 0.99), weight_decay=0.0)
    start, step = time.time(), 0
    while (done := (time.time() - start) / seconds) < 1:
        for group in opt.param_groups:
            group["lr"] = 4e-3 * min(1, step / 50) * (1 - done) + 2e-5
        # Crops first for many cheap steps; whole pictures last, because GroupNorm sees the whole picture in use.
        batch, crop = (8, 64) if done < 0.6 else (4, 128)
        rows = torch.randint(len(pictures), (batch,), generator=g)
        y, x = torch.randint(128 - crop + 1, (2,), generator=g).tolist()
        target = pictures[rows, :, y:y + crop, x:x + crop].float()
        with torch.autocast("cpu", torch.bfloat16):
            moments = vae.quant_conv(vae.encoder(target))
        mean, logvar = moments.float().chunk(2, dim=1)
        # logvar is not trained as a posterior: the noise below is fixed at 8 % of the spread.
        noisy = mean + 0.08 * mean.detach().std() * torch.randn(mean.shape, generator=g)
        with torch.autocast("cpu", torch.bfloat16):
            out = vae.decoder(vae.post_quant_conv(noisy))
        error = out.float() - target
        loss = error.abs().mean() + error.square().mean()
        loss = loss + 1e-4 * mean.square().mean() + 1e-4 * (logvar + 8).square().mean()
        opt.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        opt.step()
        step += 1
        if step % 200 == 0:
            print(f"step {step} {time.time() - start:.0f} s loss {loss.item():.4f} mse {error.square().mean().item():.4f}", flush=True)


@torch.no_grad()
def standardise(vae, pictures):
    """Fold an affine map per channel into the 1x1 convolutions: mean 0, deviation 1 / SCALING."""
    z = vae.quant_conv(vae.encoder(pictures.float()))[:, :4]
    mean, scale = z.mean((0, 2, 3)), 1 / (SCALING * z.std((0, 2, 3)))
    q, p = vae.quant_conv, vae.post_quant_conv
    q.weight[:4] *= scale[:, None, None, None]
    q.bias[:4] = (q.bias[:4] - mean) * scale
    p.bias += p.weight[:, :, 0, 0] @ mean
    p.weight /= scale[None, :, None, None]
    print("channel std before", z.std((0, 2, 3)).tolist())


@torch.no_grad()
def encode(vae, pictures):
    """Pictures [n,3,h,w] in -1..1 -> scaled latents [n,4,h/2,w/2] of unit deviation."""
    return torch.cat([vae.encode(p.float()).latent_dist.mean * SCALING for p in pictures.split(16)])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=180)
    parser.add_argument("--varied", action="store_true", help="the harder pictures of the first part of the training")
    parser.add_argument("--threads", type=int, default=2, help="1 is faster when the cores are shared")
    args = parser.parse_args()
    scenes = VARIED if args.varied else PLAIN
    args.work.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    torch.set_num_threads(args.threads)
    if not (args.work / "vae").exists():  # else only encode
        pictures = torch.cat([draw(256, 10_000 + i, scenes=scenes)[0].half() for i in range(8)])
        vae = build()
        print(f"{sum(p.numel() for p in vae.parameters()) / 1e3:.0f} k parameters")
        train(vae, pictures, args.seconds)
        vae.eval()
        standardise(vae, pictures[:256])
        vae.half().save_pretrained(args.work / "vae")
    vae = AutoencoderKL.from_pretrained(args.work / "vae").eval()  # the rounded weights, as shipped

    test, _ = draw(32, 1, scenes=scenes)
    with torch.no_grad():
        z = encode(vae, test)
        back = vae.decode(z / SCALING).sample.clamp(-1, 1)
        rough = vae.decode((z + 0.1 * torch.randn_like(z)) / SCALING).sample.clamp(-1, 1)
    for name, out in (("clean", back), ("latents + 0.1 noise", rough)):
        mse = (out - test).square().mean((1, 2, 3)) / 4
        print(f"PSNR {name}: {(-10 * mse.log10()).mean():.2f} dB; latent std {z.std():.3f}")
    sheet(torch.cat([test[:16], back[:16], rough[:16]])).save(args.work / "vae.png")
    for size, batches in ((16, 96), (32, 64), (64, 20)):
        start, latents, words = time.time(), [], []
        for i in range(batches):
            pictures, ids = draw(256, 20_000 + 1000 * size + i, size=2 * size, scenes=scenes)
            with torch.autocast("cpu", torch.bfloat16):
                latents.append(encode(vae, pictures).half())
            words.append(ids)
        z = torch.cat(latents)
        print(f"{len(z)} latents of {size}x{size}: {time.time() - start:.0f} s, std {z.float().std():.3f}", flush=True)
        save_file({"latents": z, "ids": torch.cat(words)}, args.work / f"latents-{size}.safetensors")


if __name__ == "__main__":
    main()
