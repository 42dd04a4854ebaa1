"""The table of other tools' words stays true when the schema changes."""

import pytest

from vlmtune.config.keys import all_keys, key_at
from vlmtune.config.words import NOT_HERE, NOTES, RENAMED

# What users of LLaMA-Factory, ms-swift, Axolotl, Unsloth, TRL and the Hugging Face Trainer write most.
ASKED_FOR = """
model_name_or_path base_model model_id base quantization_bit quant_bits bits lora_r lora_rank lora_alpha lora_dropout
lora_target lora_target_modules target_modules freeze_vit freeze_aligner freeze_llm freeze_merger finetune_vision_layers
freeze_multi_modal_projector freeze_language_model image_max_pixels image_min_pixels max_pixels resize cutoff_len
max_seq_length sequence_len model_max_length truncation_strategy dataset eval_dataset val_size max_samples media_dir
image_folder split_dataset_ratio train_on_prompt assistant_only_loss train_on_inputs vit_lr aligner_lr vision_lr
merger_lr per_device_train_batch_size per_device_eval_batch_size num_train_epochs epochs lr warmup_steps bf16 fp16
eval_strategy dataloader_num_workers resume_from_checkpoint bnb_4bit_compute_dtype use_bnb_nested_quant
""".split()


@pytest.mark.parametrize("word", ASKED_FOR)
def test_the_word_is_known(word):
    assert word in RENAMED or word in NOT_HERE or word in {key.path[-1] for key in all_keys()}


def test_every_word_leads_to_a_key_that_exists():
    names = {key.name for key in all_keys()}
    for word, right in RENAMED.items():
        name, _, value = right.partition(": ")
        assert name in names, word
        assert not value or value in key_at(tuple(name.split("."))).choices, word
    assert set(NOTES) <= set(RENAMED.values())


def test_no_word_hides_a_key_of_vlmtune():
    leaves = {key.path[-1] for key in all_keys()}
    assert not leaves & (set(RENAMED) | set(NOT_HERE))
    assert not set(RENAMED) & set(NOT_HERE)
    assert all(word == word.lower() for word in (*RENAMED, *NOT_HERE))
