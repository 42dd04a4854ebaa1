"""The checkpoint's processor, set as the plan says, with a chat template that ends the assistant's turn."""

from transformers import AutoProcessor, ProcessorMixin

from vlmtune.errors import VlmtuneError
from vlmtune.models.build import family_of
from vlmtune.models.download import checkpoint_folder
from vlmtune.plan import RunPlan

PROBE = [
    {"role": "user", "content": [{"type": "text", "text": "question"}]},
    {"role": "assistant", "content": [{"type": "text", "text": "answer"}]},
]


def load_processor(plan: RunPlan) -> ProcessorMixin:
    """Return tokenizer, image processor and chat template of the plan's model, ready to be saved with the adapter.

    Raises:
        VlmtuneError: files missing, or no chat template that ends the assistant's turn with an end token.
    """
    try:
        processor = AutoProcessor.from_pretrained(checkpoint_folder(plan.model, plan.revision, weights=False))
    except (OSError, ValueError) as error:
        raise VlmtuneError(
            f"the processor of {plan.model} cannot be loaded: {str(error).splitlines()[0]}",
            "the folder needs the tokenizer and preprocessor files of the model too",
        ) from None
    for name, value in plan.image_overrides.items():
        setattr(processor.image_processor, name, value)
    family = family_of(plan)
    if not family.prefix_lm:
        if turn_end_id(processor) is None and family.chat_template:
            processor.chat_template = family.chat_template
        if turn_end_id(processor) is None:
            raise VlmtuneError(
                f"the chat template of {plan.model} puts no end token after an answer: a tuned model would never stop",
                "use the instruction-tuned version of the model, or add the end token to its chat_template.jinja",
            )
    return processor


def special_token_ids(processor: ProcessorMixin) -> set[int]:
    """Return the ids of tokens that mark structure, such as the end of a turn; they never come from plain text."""
    tokenizer = processor.tokenizer
    added = {token_id for token_id, token in tokenizer.added_tokens_decoder.items() if token.special}
    return added | set(tokenizer.all_special_ids)


def turn_end_id(processor: ProcessorMixin) -> int | None:
    """Return the special token that the chat template puts after an answer, or None when it puts none."""
    if not processor.chat_template:
        return None
    tail = processor.apply_chat_template(PROBE, tokenize=False).rpartition("answer")[2]
    special = special_token_ids(processor)
    ends = [token for token in processor.tokenizer(tail, add_special_tokens=False)["input_ids"] if token in special]
    return ends[0] if ends else None
