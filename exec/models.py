"""Load a diffusers pipeline the usual way: a local directory or a hub id; and turn prompts into its embeddings."""

from __future__ import annotations

import difflib
import inspect
import json
import warnings
from collections.abc import Callable
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from exec.sampler import made_for
from planner.errors import InputError
from planner.job import Job

MASKS = ("prompt_attention_mask", "negative_prompt_attention_mask")
EMBEDS = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")


def load_pipeline(source: str, dtype: str = "float32", device: str = "cpu", sampler: str | None = None) -> Any:
    """The pipeline of directory or hub id `source`, on `device`, with `sampler` (a planner name) built from its scheduler.

    Safetensors only, no remote code. Raises InputError if it cannot be loaded.
    """
    import diffusers
    from diffusers import DiffusionPipeline

    diffusers.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    index = Path(source) / "model_index.json"
    absent: dict[str, None] = {}
    if index.is_file():  # components that the directory declares null (text encoders of the small models)
        entries = json.loads(index.read_text())
        absent = {k: None for k, v in entries.items() if isinstance(v, list) and v == [None, None]}
        if entries.get("_class_name") == "StableDiffusion3Pipeline":
            names = [f"{kind}{n}" for kind in ("text_encoder", "tokenizer") for n in ("", "_2", "_3")]
            absent |= {name: None for name in names if name not in entries}
    elif Path(source).exists():
        raise InputError(f"{source}: no model_index.json there; give a diffusers pipeline directory or a hub id")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pipe = DiffusionPipeline.from_pretrained(
                source, dtype=getattr(torch, dtype), use_safetensors=True, local_files_only=index.is_file(), **absent
            )
    except (OSError, ValueError) as error:
        raise InputError(
            f"{source}: cannot be loaded as a diffusers pipeline ({str(error).splitlines()[0]})"
        ) from error
    if denoiser(pipe).dtype != getattr(torch, dtype):  # diffusers leaves some halves as they were saved
        denoiser(pipe).to(getattr(torch, dtype))
    if sampler is not None:
        pipe.scheduler = made_for(pipe.scheduler, sampler)
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device)


def denoiser(pipe: Any) -> torch.nn.Module:
    """The pipeline's U-Net or transformer."""
    return getattr(pipe, "unet", None) or pipe.transformer


def embeds_from_file(path: str) -> dict[str, Tensor]:
    """Call arguments from a safetensors file: prompt_embeds, negative and pooled ones, add_time_ids, optional latents."""
    from safetensors.torch import load_file

    try:
        tensors = load_file(path)
    except Exception as error:  # safetensors raises its own, OSError and more for a bad file
        raise InputError(f"{path}: not a safetensors file ({error})") from error
    if "prompt_embeds" not in tensors:
        raise InputError(f"{path}: has no prompt_embeds; it has {', '.join(sorted(tensors)) or 'nothing'}")
    known = {*EMBEDS, *MASKS, "latents", "add_time_ids"}
    unknown = sorted(set(tensors) - known)
    if unknown:
        raise InputError(f"{path}: unknown tensor {unknown[0]!r}; allowed are {', '.join(sorted(known))}")
    return tensors


def embeds_from_words(source: str, prompts: list[str], negative: str = "") -> dict[str, Tensor] | None:
    """Call arguments for the models that ship a word table instead of text encoders; None if `source` has no table."""
    table = Path(source) / "words.json"
    if not table.is_file():
        return None
    prompt_embeds, pooled = encode_words(prompts, source)
    no_embeds, no_pooled = encode_words([negative] * len(prompts), source)
    return dict(zip(EMBEDS, (prompt_embeds, no_embeds, pooled, no_pooled), strict=True))


def _reads(pipe: Any) -> bool:
    """Whether the pipeline has a text encoder."""
    return any(getattr(pipe, f"text_encoder{n}", None) is not None for n in ("", "_2", "_3"))


def embeds_made_up(pipe: Any, batch: int) -> dict[str, Tensor]:
    """Random embeddings of the right shapes, for timing a model that has no text encoder beside it."""
    from exec.denoiser import adapter_for
    from exec.describe import INPUTS

    inputs, tokens = INPUTS[adapter_for(denoiser(pipe)).family]
    like = inputs(denoiser(pipe), batch, 64, 64, "meta", tokens)
    added = like.get("added_cond_kwargs") or {}
    pooled = like.get("pooled_projections", added.get("text_embeds"))
    generator = torch.Generator().manual_seed(0)
    found = {}
    for name, shaped in zip(EMBEDS, (like["encoder_hidden_states"],) * 2 + (pooled,) * 2, strict=True):
        if shaped is not None:
            found[name] = torch.randn(shaped.shape, generator=generator)
    return found


def encode_words(prompts: list[str], source: str) -> tuple[Tensor, Tensor]:
    """(n, T, D) prompt embeddings and (n, P) pooled ones from the word tables of directory `source`.

    "" is all padding: the unconditional branch. A word after "on" describes the ground and has a row of its own.
    Raises InputError for a word that the table does not have.
    """
    from safetensors.torch import load_file

    spec = json.loads((Path(source) / "words.json").read_text())
    tables = load_file(Path(source) / "words.safetensors")
    known, length = spec["words"], spec["max_tokens"]
    ids = torch.full((len(prompts), length), spec["pad"])
    pooled = torch.zeros(len(prompts), tables["pooled"].shape[1])
    for row, prompt in enumerate(prompts):
        role, found = "", []
        for word in prompt.lower().split():
            if role + word not in known:
                plain = ", ".join(sorted({w.removeprefix("on ") for w in known}))
                raise InputError(f"prompt {prompt!r}: {source} has no word {role + word!r}; it has {plain}")
            found.append(known[role + word])
            role = "on " if word == "on" else role
        if len(found) > length:
            raise InputError(f"prompt {prompt!r} has {len(found)} words; {source} takes at most {length}")
        if found:
            ids[row, : len(found)] = torch.tensor(found)
            pooled[row] = tables["pooled"][found].float().mean(0)
    return tables["prompt"][ids].float(), pooled


def arguments(pipe: Any, source: str, prompt: str | None, embeds: str | None, batch: int) -> dict[str, Any]:
    """What the pipeline call needs for its text: embeddings from a file, from the model's words, or plain prompts."""
    if embeds is not None:
        found: dict[str, Any] = embeds_from_file(embeds)
    else:
        found = embeds_from_words(source, [prompt or ""] * batch) or (
            {"prompt": [prompt or ""] * batch} if prompt or _reads(pipe) else embeds_made_up(pipe, batch)
        )
    takes, like = parameters(pipe), denoiser(pipe)
    if "negative_prompt_embeds" in found:
        found["negative_prompt"] = None  # PixArt's own is "", which contradicts
    for mask in set(MASKS) & takes - set(found):  # a mask that is not given hides nothing
        tokens = found.get(mask.replace("attention_mask", "embeds"))
        if tokens is not None:
            found[mask] = torch.ones(tokens.shape[:2])
    ids = found.pop("add_time_ids", None)
    if ids is not None:  # (1, 6): original size, crop, target size
        flat = [int(v) for v in ids.flatten()[:6]]
        found |= {
            "original_size": (flat[0], flat[1]),
            "crops_coords_top_left": (flat[2], flat[3]),
            "target_size": (flat[4], flat[5]),
        }
    return {k: v.to(like.device, like.dtype) if isinstance(v, Tensor) else v for k, v in found.items()}


def parameters(pipe: Any) -> set[str]:
    """Names of what the pipeline's call takes."""
    return set(inspect.signature(type(pipe).__call__).parameters) - {"self", "args", "kwargs"}


def planned_call(pipe: Any, job: Job) -> dict[str, Any]:
    """What of the pipeline's call follows from the job. PixArt would round the size to one of its own."""
    exact = {"use_resolution_binning": False} if "use_resolution_binning" in parameters(pipe) else {}
    return exact | {
        "height": job.height,
        "width": job.width,
        "num_inference_steps": job.steps,
        "guidance_scale": job.guidance,
        "generator": torch.Generator().manual_seed(job.seed),
        "output_type": "latent",
    }


def every_step(pipe: Any, seen: Callable[[int, Tensor], None]) -> dict[str, Any]:
    """Arguments by which the pipeline's call tells `seen` the number of each step and the latents after it."""

    def new(_pipe: Any, step: int, _t: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        seen(step, tensors["latents"])
        return {}

    def old(step: int, _t: Any, latents: Tensor) -> None:
        seen(step, latents)

    return {"callback_on_step_end": new} if "callback_on_step_end" in parameters(pipe) else {"callback": old}


def further(pipe: Any, call: dict[str, Any], given: set[str]) -> dict[str, Any]:
    """`call`, if the pipeline's call takes these arguments and the job and prompt have not `given` them; else InputError."""
    takes = parameters(pipe)
    for name in call:
        if isinstance(call[name], float) and not isfinite(call[name]):
            raise InputError(f"call argument {name!r} must be a finite number, not {call[name]}")
        if name in given:
            raise InputError(f"call argument {name!r} is given by the job and the prompt already; give it there")
        if name not in takes:
            near = difflib.get_close_matches(name, takes, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise InputError(f"{type(pipe).__name__} takes no argument {name!r}{hint}")
    return call
