"""Tokens that leave inside the layers, by transformers' own layers and their attention maps."""

import copy

import torch
from tiny_models import config_fields
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from videonsa.models.rows import vision_inputs

LAYERS = config_fields(num_hidden_layers=4)


def stock_twin(model):
    """Transformers' model of the same weights, which gives its attention maps."""
    config = Qwen2_5_VLConfig(**LAYERS)
    twin = Qwen2_5_VLForConditionalGeneration._from_config(config, attn_implementation="eager")
    missing, _ = twin.load_state_dict(model.state_dict(), strict=False)
    assert not missing
    return twin.eval()


@torch.no_grad()
def embedded(model, inputs):
    """Embeddings `[1, L, hidden]`, position ids `[3, 1, L]` and the vision mask of a prompt."""
    ids, kind = inputs["input_ids"], "video" if "video_grid_thw" in inputs else "image"
    grids, times = inputs[f"{kind}_grid_thw"], inputs.get("video_times")
    pixels = inputs["pixel_values_videos" if kind == "video" else "pixel_values"]
    features = model.encode_vision(pixels, [tuple(one) for one in grids.tolist()])
    both = (grids, None) if kind == "image" else (None, grids)
    rows = model.describe(ids, vision_inputs(*both, times, None, temporal_ids="exact"))
    embeds = model.embed_prompt(ids, **{f"{kind}_features": features})
    return embeds, rows.position_ids, rows.vision_mask[0]


@torch.no_grad()
def by_hand(model, inputs, *, layer, choose, more=()):
    """Logits `[1, K + len(more), V]` of the tokens left, and their places.

    Args:
        model: whose weights these are.
        inputs: of one prompt.
        layer: the number of layers that hold all tokens.
        choose: (stock model, its output for the prompt, vision mask) to the places that stay.
        more: ids of text tokens that are read after it, and all stay.
    """
    stock = stock_twin(model)
    embeds, positions, vision = embedded(model, inputs)
    language = stock.model.language_model
    seen = language(
        inputs_embeds=embeds,
        position_ids=positions,
        output_hidden_states=True,
        output_attentions=True,
    )
    kept = choose(stock, seen, vision)
    length = embeds.shape[1]
    if more:
        shown = stock.model.language_model.embed_tokens(torch.tensor([list(more)]))
        after = positions.max() + 1 + torch.arange(len(more)).expand(3, 1, -1)
        embeds, positions = torch.cat([embeds, shown], 1), torch.cat([positions, after], 2)
        seen = language(inputs_embeds=embeds, position_ids=positions, output_hidden_states=True)
    left = torch.cat([kept, torch.arange(length, embeds.shape[1])])
    rest = copy.copy(language)
    rest._modules = dict(language._modules)
    rest.layers = language.layers[layer:]
    last = rest(
        inputs_embeds=seen.hidden_states[layer][:, left], position_ids=positions[:, :, left]
    ).last_hidden_state
    return stock.lm_head(last), kept


def best(scores, vision, ratio):
    """Places of the text, and of a share of the vision tokens with the highest scores."""
    places = vision.nonzero()[:, 0].tolist()
    count = max(1, int(ratio * len(places)))
    stay = sorted(places, key=lambda place: -float(scores[place]))[:count]
    return torch.tensor(sorted([*(~vision).nonzero()[:, 0].tolist(), *stay]))
