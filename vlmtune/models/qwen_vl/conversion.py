"""How names and shapes of the published weights become those of the model, while they load, and back when saved."""

from vlmtune.compat.transformers import CHUNK, REGISTER_CONVERSION_MAPPING, WEIGHT_CONVERTER, WEIGHT_RENAMING

LAYER_NAMES = {
    "ln_1": "input_layernorm",
    "ln_2": "post_attention_layernorm",
    "attn.c_proj": "self_attn.o_proj",
    "mlp.w1": "mlp.up_proj",
    "mlp.w2": "mlp.gate_proj",
    "mlp.c_proj": "mlp.down_proj",
}
PARTS = {
    "transformer.h": "model.language_model.layers",
    "transformer.wte": "model.language_model.embed_tokens",
    "transformer.ln_f": "model.language_model.norm",
    "transformer.visual": "model.visual",
}


def register_conversion(class_name: str) -> None:
    """Tell transformers how to read and write the files of the model class of that name.

    Saving applies the same rules from the last to the first: each must leave alone what the others make.
    """
    converter, renaming, chunk = WEIGHT_CONVERTER.get(), WEIGHT_RENAMING.get(), CHUNK.get()
    split = [
        converter(f"attn.c_attn.{kind}", [f"self_attn.{part}_proj.{kind}" for part in "qkv"], operations=[chunk(dim=0)])
        for kind in ("weight", "bias")
    ]
    parts = [renaming(f"{theirs}.", f"{ours}.") for theirs, ours in PARTS.items()]
    layer = r"language_model\.layers\.(\d+)\."
    in_layers = [
        renaming(layer + theirs.replace(".", r"\."), r"language_model.layers.\1." + ours)
        for theirs, ours in LAYER_NAMES.items()
    ]
    REGISTER_CONVERSION_MAPPING(class_name, [*split, *parts, *in_layers], overwrite=True)
