"""Train the small SD3-shaped transformer (flow matching) and write a StableDiffusion3Pipeline directory.

    python mmdit.py --work DIR --out models/shapes-mmdit

One thread; budgets are in models/README.md; 64x64x4 latents of 128x128 pictures; patch 2, so 1024 tokens, 4
joint layers of 4 heads x 32.
"""
import copy
import math

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from loop import Words, arguments, levels, load_vae, train, write
from torch.nn.functional import avg_pool2d

TEXT, POOLED = 64, 64  # widths of prompt and pooled embeddings
GRID = 32  # tokens a side at 64x64 latents
SHIFT = 3.0  # as in SD3 medium; applied to the training noise levels as well


def build():
    return SD3Transformer2DModel(
        sample_size=64, patch_size=2, in_channels=4, out_channels=4, num_layers=4, attention_head_dim=32,
        num_attention_heads=4, caption_projection_dim=128, joint_attention_dim=TEXT, pooled_projection_dim=POOLED,
        pos_embed_max_size=GRID, dual_attention_layers=(), qk_norm="rms_norm")


def set_grid(net, full, tokens):
    """Positions for tokens x tokens: the whole picture is always covered, a coarse token sits between fine ones."""
    if net.pos_embed.pos_embed_max_size != tokens:
        table = full.reshape(GRID, GRID, -1).permute(2, 0, 1)
        net.pos_embed.pos_embed = avg_pool2d(table, GRID // tokens).flatten(1).T[None].contiguous()
        net.pos_embed.pos_embed_max_size = tokens


def main():
    args = arguments(__doc__, lr=1.5e-3, minutes=(5, 7, 9))
    torch.manual_seed(args.seed)
    torch.set_num_threads(1)
    vae = load_vae(args.work)
    net, words = build(), Words(TEXT, POOLED)
    full = net.pos_embed.pos_embed.clone()

    def loss_of(net, prompt, pooled, z, g):
        """Velocity error for latents z [n,4,h,w]: x = (1 - s) z + s noise, target noise - z."""
        set_grid(net, full, z.shape[-1] // 2)
        n = len(z)
        # Fewer pixels average less noise away: half the size needs half the shift.
        shift = SHIFT * z.shape[-1] / 64
        s = torch.sigmoid(1.3 * torch.special.ndtri(levels(n, g)) + math.log(shift) - 0.2).view(n, 1, 1, 1)
        noise = torch.randn(z.shape, generator=g)
        out = net((1 - s) * z + s * noise, prompt, pooled, s.flatten() * 1000).sample
        return (out.float() - (noise - z)).square().mean()

    def publish(net, words):
        shipped = copy.deepcopy(net)
        set_grid(shipped, full, GRID)
        pipe = StableDiffusion3Pipeline(
            vae=vae, text_encoder=None, text_encoder_2=None, text_encoder_3=None, tokenizer=None, tokenizer_2=None,
            tokenizer_3=None, transformer=shipped.half(), scheduler=FlowMatchEulerDiscreteScheduler(shift=SHIFT))
        write(args.out, pipe, words)

    if args.resume:
        net.load_state_dict(SD3Transformer2DModel.from_pretrained(args.out / "transformer").state_dict())
        words.load(args.out)
    print(f"{sum(p.numel() for p in net.parameters()) / 1e6:.2f} M parameters")
    publish(*train(net, words, loss_of, args, publish=publish))


if __name__ == "__main__":
    main()
