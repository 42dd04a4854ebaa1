"""How names and shapes of the published weights become those of the model, while they load, and back when saved."""

from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import Chunk, WeightConverter, WeightRenaming

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
    split = [
        WeightConverter(
            f"attn.c_attn.{kind}", [f"self_attn.{part}_proj.{kind}" for part in "qkv"], operations=[Chunk(dim=0)]
        )
        for kind in ("weight", "bias")
    ]
    parts = [WeightRenaming(f"{theirs}.", f"{ours}.") for theirs, ours in PARTS.items()]
    layer = r"language_model\.layers\.(\d+)\."
    in_layers = [
        WeightRenaming(layer + theirs.replace(".", r"\."), r"language_model.layers.\1." + ours)
        for theirs, ours in LAYER_NAMES.items()
    ]
    register_checkpoint_conversion_mapping(class_name, [*split, *parts, *in_layers], overwrite=True)
