"""Every knob of vlmtune, once. YAML keys, JSON schema, docs/config.md and error texts come from these fields.

A field's docstring is its documentation. `None` means "decided by the plan" and the plan says what it chose and why.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from vlmtune.config.sections import AugmentSection, Question, Section, Sources
from vlmtune.config.text import MAX_NAME_CHARS, RUN_NAME

MAX_RANK, MAX_ALPHA = 1024, 10_000
Fraction, Count = Annotated[float, Field(ge=0.0, lt=1.0)], Annotated[int, Field(ge=1, le=1_000_000)]
MetricName = Literal["exact", "contains", "cer", "wer", "anls", "token_f1", "json_valid", "json_fields", "iou"]
"""Those of `vlmtune.metrics.table`."""


class ModelSection(Section):
    """Which model is tuned."""

    name: Annotated[str, Field(min_length=1)]
    """Hub id (`Qwen/Qwen2.5-VL-3B-Instruct`) or the path of a folder with the model."""
    type: str | None = None
    """Model family, such as `llava` or `qwen2_vl`. Default: what the model's config.json says; checked against it."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    adapter: Annotated[str, Field(min_length=1)] | None = None
    """Start from this LoRA adapter: its folder, or a finished run's. Its rank, alpha and layers are taken from it."""
    cache_quantized: bool = False
    """Keep the quantised base in the user's cache: the next start reads a quarter of the bytes, and the same model."""


class ChatTemplateSection(Section):
    """What the model's chat template is told besides the conversation, in training and whenever the model is asked."""

    enable_thinking: bool | None = None
    """Whether the model is to think before it answers. Default: as its template does; off where rows would not fit."""


class DataSection(Section):
    """What the model learns from."""

    train_path: Sources
    """Training rows: a file, a pattern, a folder, a hub data set, or a list of them. Relative to the config file."""
    val_path: Sources | None = None
    """Rows held out for evaluation, written in the same way."""
    val_fraction: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    """Share of the training rows that is held out, chosen by `training.seed`. Rows of one image stay together."""
    max_samples: Count | None = None
    """Take at most so many rows of `train_path`, chosen by `training.seed`."""
    columns: dict[str, str] = {}
    """Names of columns in the data and what they are here: `{caption_en: answer}`."""
    prompt: Question | None = None
    """Question of rows that have none: captions, and pictures in folders named after what they show."""
    image_dir: str | None = None
    """Folder that relative image paths start from. Default: the folder of the data file."""
    augment: AugmentSection = AugmentSection()
    """Random changes of training pictures. Default: none."""
    max_length: Annotated[int, Field(ge=16, le=1_000_000)] = 1024
    """Longest allowed text in tokens. Image tokens come on top and are never cut."""
    image_size: Annotated[int, Field(ge=28, le=16_384)] | None = None
    """Longest image side in pixels; larger images are shrunk. Models with a fixed input say that it has no effect."""
    truncation: Literal["error", "cut"] = "error"
    """Text over `max_length`: `error` names the rows; `cut` shortens the last answer from its end and counts them."""
    on_bad_row: Literal["error", "skip"] = "error"
    """An unusable row: `error` lists them all and stops before the model loads; `skip` drops and counts them."""
    allow_urls: bool = False
    """Fetch images given as http(s) addresses. Off: such a row is a bad row."""
    cache_features: Literal["auto", True, False] = "auto"
    """Encode images once, before the language model loads, and keep that on disk. `auto`: where it saves time."""
    cache_features_gib: Annotated[float, Field(gt=0.0, le=100_000.0)] = 20.0
    """Disk that all cached features may take, in GiB; those of other models, unused for longest, make room."""
    chat_template_kwargs: ChatTemplateSection = ChatTemplateSection()
    """What the chat template is told besides the conversation."""


class LoraSection(Section):
    """The low-rank adapters (methods `qlora` and `lora`)."""

    rank: Annotated[int, Field(ge=1, le=MAX_RANK)] = 16
    """Rank r of every adapter."""
    alpha: Annotated[int, Field(ge=1, le=MAX_ALPHA)] = 32
    """Scale: adapters act with alpha / rank."""
    dropout: Fraction = 0.0
    """Dropout before the adapters."""
    vision_tower: bool = False
    """Also put adapters on the vision tower. Off: language model only, which is also what most servers can load."""


class QuantizationSection(Section):
    """How the frozen base is stored (method `qlora`)."""

    load_in_4bit: bool = True
    """Quantise the frozen base to 4 bits with bitsandbytes."""
    bnb_4bit_quant_type: Literal["nf4", "fp4"] = "nf4"
    """4-bit number format."""
    bnb_4bit_use_double_quant: bool = True
    """Quantise the quantisation constants too: 0.43 bit less per weight."""
    quantize_vision_tower: bool = True
    """Quantise the vision tower as well. Off: the tower stays 16-bit."""
    quantize_head: Literal[False, True, "8bit"] = False
    """Quantise the head as well, to 4 bits (`true`) or `8bit`. One that is the embedding too stays 16-bit."""


class TrainingSection(Section):
    """How the model learns."""

    method: Literal["qlora", "lora", "full"] = "qlora"
    """`qlora`: adapters, 4-bit base. `lora`: adapters, 16-bit base. `full`: every weight of the language model."""
    learning_rate: Annotated[float, Field(gt=0.0, le=1.0)] = 2e-4
    """Peak learning rate."""
    batch_size: Count = 1
    """Rows per forward pass."""
    gradient_accumulation_steps: Count | None = None
    """Forward passes per optimizer step; rows per step = batch_size × this. Default: 4 to 32 rows, by their number."""
    packing: Literal["auto", True, False] = "auto"
    """Put rows behind each other in packs, with as many rows a step: less padding, fewer passes. `auto`: not yet."""
    pack_tokens: Annotated[int, Field(ge=64, le=1_000_000)] | None = None
    """Tokens of a pack, images included; a longer row is a pack of its own. Default: 2048."""
    num_epochs: Annotated[float, Field(gt=0.0, le=10_000.0)] | None = None
    """Passes over the training rows. Default: as many as make 100 steps, at least one."""
    max_steps: Count | None = None
    """Stop after this many optimizer steps, whatever `num_epochs` says."""
    warmup_ratio: Fraction = 0.03
    """Share of the steps over which the learning rate rises from zero."""
    lr_scheduler_type: Literal["cosine", "linear", "constant", "constant_with_warmup"] = "cosine"
    """Shape of the learning rate after warm-up."""
    optim: Literal["adamw", "adamw_8bit", "paged_adamw_8bit"] | None = None
    """Optimizer. Default: `paged_adamw_8bit` on a GPU for adapters and full tuning alike, `adamw` (fused) on a CPU."""
    weight_decay: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """AdamW weight decay."""
    max_grad_norm: Annotated[float, Field(gt=0.0)] = 1.0
    """Gradients are scaled down to this norm."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 42
    """Seed of adapters, dropout and row order."""
    logging_steps: Count = 1
    """Optimizer steps between two lines of `log.jsonl`."""
    eval_steps: Count | None = None
    """Optimizer steps between two evaluations of the loss on `data.val_path`. Default: at the end only."""
    save_steps: Count = 100
    """Optimizer steps between two checkpoints."""
    save_minutes: Annotated[float, Field(ge=0.0, le=10_000.0)] = 30.0
    """Minutes after which a checkpoint is written all the same; 0 leaves it to `save_steps`."""
    save_total_limit: Count = 2
    """Checkpoints kept."""
    save_best_by: Literal["loss", MetricName] | None = None
    """Keep the checkpoint of the best evaluation on held-out rows as the result. Default: the last step is it."""
    early_stopping_patience: Count | None = None
    """End the run after so many evaluations in a row without a better one (`save_best_by`). Default: never."""
    report_to: tuple[Literal["tensorboard", "wandb"], ...] = ()
    """Also log to these services."""
    freeze_vision_tower: bool = True
    """Method `full`: keep the vision tower as it is."""
    freeze_projector: bool = True
    """Method `full`: keep the projector between tower and language model as it is."""
    lora: LoraSection = LoraSection()
    """Adapter settings."""
    quantization: QuantizationSection = QuantizationSection()
    """4-bit settings."""


class HardwareSection(Section):
    """How the machine is used."""

    mixed_precision: Literal["auto", "bf16", "fp16", "no"] = "auto"
    """Number format of the computation. `auto`: bf16 where the card has it, else fp16 with scaling; fp32 on a CPU."""
    gradient_checkpointing: bool = True
    """Recompute activations instead of keeping them: much less memory, and the layers' forward pass once more."""
    checkpointed_layers: Annotated[int, Field(ge=1, le=1000)] | None = None
    """Recompute only the language model's first layers, this many; the others keep theirs: faster. Default: all."""
    offload_activations: bool = False
    """Keep what layers recompute from in main memory: less on the card, and two copies over the bus for each layer."""
    offload_embeddings: bool | None = None
    """Keep embedding tables in main memory and look rows up there. Default: on a GPU wherever the model allows it."""
    lean_lora: Literal["auto", True, False] = "auto"
    """Compute adapters in the run's number format with few operations, not in fp32 as PEFT. `auto`: without dropout."""
    streamed_layers: Annotated[int, Field(ge=0, le=1000)] = 0
    """Method `qlora`: so many of the language model's layers lie in main memory, and two of them on the card."""
    varlen_attention: Literal["auto", True, False] = "auto"
    """One attention call for all rows of a pack and all windows of a tower. `auto`: on Ampere and newer cards."""
    align_widths: Literal["auto", True, False] = "auto"
    """Fill frozen MLPs of an odd width up with zeros to one that GPUs multiply fast. `auto`: on a GPU."""
    fused_norms: Literal["auto", True, False] = "auto"
    """Compute frozen RMS norms in one kernel, torch's own, narrow ones in Triton. `auto`: on a GPU."""
    fused_elementwise: Literal["auto", True, False] = "auto"
    """Compute gated MLPs and rotary positions in one Triton kernel each. `auto`: on Ampere or newer, with Triton."""
    joined_constants: Literal["auto", True, False] = "auto"
    """Unpack the constants of a layer's 4-bit weights together. `auto`: on a GPU, with double quantisation."""
    cuda_graphs: Literal["auto", True, False] = "auto"
    """Record what layers launch, to repeat it in one launch; packs are filled up to a few lengths. `auto`: false."""
    num_workers: Annotated[int, Field(ge=0, le=64)] | None = None
    """Processes that read images. Default: 2 on a GPU, 0 on a CPU."""
    num_gpus: Annotated[int, Field(ge=1, le=4096)] | Literal["auto"] | None = None
    """GPUs that train together, as many rows a step: time changes, not the result. `auto`: all here. Default: one."""
    shard: Literal["auto", "never", "always"] = "auto"
    """Method `qlora`: each GPU keeps a share of the 4-bit layers and gathers the rest. `auto`: if one has no room."""
    on_oom: Literal["error", "retry"] = "error"
    """Out of GPU memory: `error` names the changes that would have fitted; `retry` takes less at a time and goes on."""


class EvaluationSection(Section):
    """How answers to held-out rows are judged, by `vlmtune evaluate` and during training."""

    metrics: tuple[MetricName, ...] = ("exact",)
    """What answers are judged by, beside the loss; the first one calls rows right or wrong. `docs/evaluation.md`."""
    batch_size: Count | None = None
    """Rows that are answered at once. Default: as many as memory leaves room for, 16 at most."""
    generate_rows: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    """Held-out rows that are answered at each evaluation in training, spread over all; 0: none, the loss alone."""
    generate_minutes: Annotated[float, Field(gt=0.0, le=10_000.0)] = 5.0
    """What answering may take at each evaluation in training; if the first takes longer, later ones have fewer rows."""


class TrainingConfig(Section):
    """One training run, as written in YAML."""

    experiment_name: Annotated[str, Field(pattern=RUN_NAME, max_length=MAX_NAME_CHARS)] = "run"
    """Name of the run folder inside `output_dir`: letters, digits, `.`, `_`, `-`."""
    output_dir: Annotated[str, Field(min_length=1)] = "runs"
    """Folder that holds the run folders. Relative to the current folder."""
    preset: str | None = None
    """Preset whose values come before those of this file: see `vlmtune presets list`."""
    model: ModelSection
    data: DataSection
    training: TrainingSection = TrainingSection()
    hardware: HardwareSection = HardwareSection()
    evaluation: EvaluationSection = EvaluationSection()

    @model_validator(mode="after")
    def _refuse_contradictions(self) -> "TrainingConfig":
        """Raise on keys that cannot hold together: one line each, which starts with the key it is about."""
        training, lora = self.training, self.training.lora
        found = []
        if training.method == "qlora" and not training.quantization.load_in_4bit:
            found.append(
                "training.quantization.load_in_4bit: false contradicts training.method: qlora; use method: lora"
            )
        if training.method == "full" and lora.vision_tower:
            found.append(
                "training.lora.vision_tower: method full has no adapters; set training.freeze_vision_tower: false"
            )
        if training.method != "full" and not (training.freeze_vision_tower and training.freeze_projector):
            frozen = "freeze_projector" if training.freeze_vision_tower else "freeze_vision_tower"
            found.append(
                f"training.{frozen}: method {training.method} keeps tower and projector frozen; "
                "use training.lora.vision_tower: true or method: full"
            )
        for key in ("checkpointed_layers", "offload_activations"):
            if getattr(self.hardware, key) and not self.hardware.gradient_checkpointing:
                without = "no layer recomputes with hardware.gradient_checkpointing: false"
                found.append(f"hardware.{key}: {without}; keep one of the two")
        if training.quantization.quantize_head and training.method != "qlora":
            found.append(
                f"training.quantization.quantize_head: method {training.method} quantises nothing; use method: qlora"
            )
        found += self._contradictions_of_held_out_rows()
        found += self._wrong_of_start_and_end()
        if found:
            raise ValueError("\n".join(found))
        return self

    def _contradictions_of_held_out_rows(self) -> list[str]:
        data, found = self.data, []
        if data.val_path and data.val_fraction:
            found.append("data.val_fraction: data.val_path names the rows to hold out already; keep one of the two")
        if not (data.val_path or data.val_fraction):
            wishes = {
                "training.eval_steps: nothing to evaluate": self.training.eval_steps,
                "evaluation.generate_rows: nothing to answer": self.evaluation.generate_rows,
            }
            found += [f"{what} without data.val_path or data.val_fraction" for what, wish in wishes.items() if wish]
        return found

    def _wrong_of_start_and_end(self) -> list[str]:
        training, found = self.training, []
        if training.method == "full" and self.model.adapter:
            found.append("model.adapter: method full has no adapters; use method: qlora or lora")
        if training.save_best_by and not training.eval_steps:
            found.append(
                "training.save_best_by: the model is evaluated at the end only, so there is nothing to choose from; "
                "set training.eval_steps, which needs held-out rows"
            )
        by = training.save_best_by
        if by not in (None, "loss") and not (by in self.evaluation.metrics and self.evaluation.generate_rows):
            found.append(
                f"training.save_best_by: {by} is not taken in training; name it in evaluation.metrics, and set "
                "evaluation.generate_rows"
            )
        if training.early_stopping_patience and not training.save_best_by:
            found.append(
                "training.early_stopping_patience: nothing is better or worse; set training.save_best_by, such as loss"
            )
        return found

    @property
    def run_dir(self) -> Path:
        """The run folder: `output_dir/experiment_name`."""
        return Path(self.output_dir).expanduser() / self.experiment_name
