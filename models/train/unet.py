"""Train the small SDXL-shaped UNet (noise prediction) and write a StableDiffusionXLPipeline directory.

    python unet.py --work DIR --out models/shapes-unet

One thread; budgets are in models/README.md; 64x64x4 latents of 128x128 pictures; three levels, two
downsamplings, attention on the two lower ones.
"""
import copy

import torch
from diffusers import DDIMScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from loop import Words, arguments, levels, load_vae, train, write

TEXT, POOLED, TIME = 64, 64, 32  # widths of prompt, pooled and size embeddings
# SDXL's schedule stops at a signal-to-noise ratio of 0.005, which on 64x64 latents of unit
# deviation still shows every object: the model would then "see" objects in pure noise and
# draw several.  Latents of half the deviation (the VAE's scaling_factor is halved) hide them.
SPREAD = 0.5
SCHEDULER = DDIMScheduler(
    beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000,
    clip_sample=False, set_alpha_to_one=False, steps_offset=1, timestep_spacing="leading",
    prediction_type="epsilon")


def build():
    return UNet2DConditionModel(
        sample_size=64, in_channels=4, out_channels=4, block_out_channels=(32, 64, 96), layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        mid_block_type="UNetMidBlock2DCrossAttn", attention_head_dim=(1, 2, 3),  # number of heads, 32 wide each
        transformer_layers_per_block=1, cross_attention_dim=TEXT, use_linear_projection=True, norm_num_groups=8,
        addition_embed_type="text_time", addition_time_embed_dim=TIME,
        projection_class_embeddings_input_dim=6 * TIME + POOLED)


def loss_of(net, prompt, pooled, z, g):
    """Weighted noise-prediction error for latents z [n,4,h,w] of unit deviation."""
    n, z = len(z), SPREAD * z
    t = (1000 * levels(n, g)).long()
    a = SCHEDULER.alphas_cumprod[t].view(n, 1, 1, 1)
    # The schedule never reaches pure noise, so the mean colour would leak into
    # the noisiest latents; a random offset makes the model take it from the words.
    noise = torch.randn(z.shape, generator=g) + 0.1 * torch.randn(n, 4, 1, 1, generator=g)
    # The sizes of SDXL's micro-conditioning mean nothing here: varied, to be ignored.
    sizes = torch.tensor([128.0, 128, 0, 0, 128, 128]).repeat(n, 1)
    varied = torch.rand(n, 1, generator=g) < 0.3
    sizes = torch.where(varied, (torch.rand(n, 6, generator=g) * 512).round(), sizes)
    out = net(a.sqrt() * z + (1 - a).sqrt() * noise, t, prompt,
              added_cond_kwargs={"text_embeds": pooled, "time_ids": sizes}).sample
    # a^-3/4 lies between the error of the noise (which hardly sees the noisy end, where the shape is
    # decided) and that of the picture (which sees little else).
    return ((out.float() - noise).square() / a.pow(0.75)).mean() / 4


def main():
    args = arguments(__doc__, lr=1.2e-3, minutes=(3, 9, 9))
    torch.manual_seed(args.seed)
    torch.set_num_threads(1)
    vae = load_vae(args.work)
    vae.register_to_config(scaling_factor=SPREAD * vae.config.scaling_factor)

    def publish(net, words):
        pipe = StableDiffusionXLPipeline(
            vae=vae, text_encoder=None, text_encoder_2=None, tokenizer=None, tokenizer_2=None,
            unet=copy.deepcopy(net).half(), scheduler=SCHEDULER, add_watermarker=False)
        write(args.out, pipe, words)

    net, words = build(), Words(TEXT, POOLED)
    if args.resume:
        net.load_state_dict(UNet2DConditionModel.from_pretrained(args.out / "unet").state_dict())
        words.load(args.out)
    print(f"{sum(p.numel() for p in net.parameters()) / 1e6:.2f} M parameters")
    publish(*train(net, words, loss_of, args, publish=publish))


if __name__ == "__main__":
    main()
