"""Words to embeddings for the two small models in this directory.

    prompt, pooled = encode(["red star on blue"], "models/shapes-unet")
    pipe(prompt_embeds=prompt, pooled_prompt_embeds=pooled, ...)

`words.json` holds the vocabulary (word -> row), the number of tokens T and the
row of the padding; `words.safetensors` the tables `prompt` [V, D] and `pooled`
[V, P].  A word after "on" describes the ground and has a row of its own, so
that "red star on blue" and "blue star on red" differ.  The padding rows are
zero; "" is all padding: the unconditional branch of guidance.
"""
import json
from pathlib import Path

import torch
from safetensors.torch import load_file


def encode(prompts, directory):
    """Return (prompt_embeds [n, T, D], pooled_prompt_embeds [n, P]), float32, for a list of n captions."""
    spec = json.loads((Path(directory) / "words.json").read_text())
    tables = load_file(Path(directory) / "words.safetensors")
    known, pad, length = spec["words"], spec["pad"], spec["max_tokens"]
    ids = torch.full((len(prompts), length), pad)
    pooled = torch.zeros(len(prompts), tables["pooled"].shape[1])
    for row, prompt in enumerate(prompts):
        role, found = "", []
        for word in prompt.lower().split():
            if role + word not in known or word == "<pad>":
                plain = sorted({w.removeprefix("on ") for w in known} - {"<pad>"})
                where = " after 'on' (colours and textures only)" if role else ""
                raise ValueError(f"unknown word {word!r}{where} in {prompt!r}; known words: {', '.join(plain)}")
            found.append(known[role + word])
            role = "on " if word == "on" else role
        if len(found) > length:
            raise ValueError(f"{len(found)} words in {prompt!r}; at most {length}")
        ids[row, :len(found)] = torch.tensor(found, dtype=torch.long)
        if found:
            pooled[row] = tables["pooled"][found].float().mean(0)
    return tables["prompt"][ids].float(), pooled
