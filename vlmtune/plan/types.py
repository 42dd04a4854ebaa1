"""The run, decided: what `plan.decide` makes, and all that estimate and engine read. No torch here."""

from dataclasses import dataclass, field
from typing import Any

from vlmtune.families.base import PIXEL_LIMITS, Json
from vlmtune.levers.base import Choice

PACK_LENGTHS = 16
"""Lengths that packs have at most where launches are recorded, those longer than packs aside."""


@dataclass(frozen=True)
class Device:
    """The processor a plan is made for."""

    kind: str
    """`cuda` or `cpu`."""
    name: str
    bf16: bool
    total_bytes: int | None = None
    num_gpus: int | None = None
    """Such GPUs that a run may take, or processes that a launcher has started; None: as many as asked for."""
    launched: bool = False
    """Whether a launcher has started them."""
    no_triton: str | None = None
    """Why Triton cannot make kernels on this machine; None where it can, or where nobody knows."""


@dataclass(frozen=True)
class Augment:
    """Random changes of training pictures."""

    rotation: float = 0.0
    """Degrees, either way."""
    color_jitter: float = 0.0
    jpeg_quality: int | None = None

    @property
    def is_on(self) -> bool:
        """Whether any picture is changed."""
        return self != Augment()


@dataclass(frozen=True)
class RunPlan:
    """Everything a run needs, decided. JSON-able; the only thing that the model builder and the engine read."""

    experiment_name: str
    model_name: str
    """As the user wrote it; of an absolute folder the last name, because run folders are shared."""
    model_revision: str | None
    """As the user wrote it: a branch, a tag or a commit."""
    model: str
    """Hub id, or an absolute folder."""
    revision: str | None
    """The commit of a hub model."""
    data_sha256: str
    """Of the training rows: a resumed run must see the same ones."""
    family: str
    device: str
    method: str
    attention: str
    """`sdpa`, but for parts without it; `eager` for all parts where the scores are capped, which sdpa cannot do."""
    # number formats: "bf16", "fp16" or "fp32"
    base_dtype: str
    autocast_dtype: str | None
    adapter_dtype: str | None
    loss_scaling: bool
    # 4-bit base
    quant_type: str | None
    double_quant: bool
    unquantized: tuple[str, ...]
    """Full module paths that stay in `base_dtype`."""
    # what learns
    lora_targets: str | None
    """Regular expression over full module paths."""
    lora_rank: int
    lora_alpha: int
    lora_dropout: float
    trainable_parts: tuple[str, ...]
    """Method full: the parts whose weights are trained."""
    # data
    max_length: int
    image_size: int | None
    image_overrides: dict[str, Any]
    truncation: str
    allow_urls: bool
    num_workers: int
    # steps
    batch_size: int
    gradient_accumulation_steps: int
    num_epochs: float
    max_steps: int | None
    learning_rate: float
    warmup_ratio: float
    lr_scheduler_type: str
    optimizer: str
    weight_decay: float
    max_grad_norm: float
    gradient_checkpointing: bool
    checkpointed_layers: int | None
    """The language model's layers that recompute, from the first one on; None: all."""
    loss_chunk_tokens: int
    seed: int
    logging_steps: int
    eval_steps: int | None
    save_steps: int
    save_total_limit: int
    report_to: tuple[str, ...]
    offload_activations: bool = False
    """Whether what the layers that recompute start from waits in main memory."""
    offload_embeddings: bool = False
    """Whether tables of embeddings lie in main memory, and rows are looked up there."""
    choices: tuple[Choice, ...] = field(default=())
    has_own_head: bool = False
    """The files hold a head besides the embedding; config.json is silent, and the library would share one."""
    prequantised: bool = False
    """The model's files are in 4 bits already, and say which layers are; those in `unquantized` cannot be."""
    head_8bit: bool = False
    """The output head is rounded to 8 bits; `unquantized` names it too."""
    cache_quantized: bool = False
    """The quantised base is kept in the user's cache, and taken from there."""
    cache_features: bool = False
    """Images are encoded before the language model loads, and the vision tower is not part of the training model."""
    cache_features_gib: float = 20.0
    """What all cached features may take of the disk."""
    chat_template_kwargs: dict[str, bool] = field(default_factory=dict)
    """What the user wants the chat template to be told."""
    boxes: str = ""
    """Name of how the model writes boxes; empty in plans from before rows could hold any."""
    lean_lora: bool = False
    """Adapters are computed in the run's number format with few operations, in place of PEFT's fp32."""
    streamed_layers: int = 0
    """The language model's layers that lie in main memory."""
    save_minutes: float = 0.0
    """After which a checkpoint is written between those of `save_steps`; 0: never."""

    augment: Augment = Augment()
    """What is done to training pictures, another for each row and epoch."""
    data_sources: tuple[str, ...] = ()
    """Digest of each source of training rows: says which one has changed, where `data_sha256` says that one has."""
    data_commits: dict[str, str] = field(default_factory=dict)
    """`org/data@main` → the commit that it stood for when the run began."""
    metrics: tuple[str, ...] = ()
    """What answers are judged by."""
    generate_rows: int = 0
    """Held-out rows that are answered at each evaluation in training."""
    generate_minutes: float = 0.0
    """What that may take each time."""

    def preprocessor(self, published: Json) -> dict[str, Any]:
        """The settings of the image processor: those of the model's files, and what the plan sets in their place."""
        older_names = PIXEL_LIMITS if "size" in self.image_overrides else ()
        kept = {key: value for key, value in published.items() if key not in older_names}
        return {**kept, **self.image_overrides}

    pack_tokens: int = 0
    """Tokens of the packs that rows are put into; 0: rows stand under each other."""

    varlen_attention: bool = False
    """Whether rows of a pack, and windows or images of a tower, attend in one call."""

    align_widths: bool = False
    """Whether frozen MLPs of an odd width are filled up with zeros."""

    fused_norms: bool = False
    """Whether frozen RMS norms are computed in one kernel."""

    fused_elementwise: bool = False
    """Whether gated MLPs and rotary positions are."""

    joined_constants: bool = False
    """Whether the constants of a layer's 4-bit weights are unpacked together."""

    cuda_graphs: bool = False
    """Whether the launches of layers that recompute are recorded, and packs filled up to a few lengths."""

    save_best_by: str | None = None
    """By which evaluation the result is chosen; None: the last step is."""
    early_stopping_patience: int | None = None
    """Evaluations in a row without a better one that end the run."""

    adapter: str = ""
    """Absolute folder of the adapter that the run starts from; empty: a new one."""
    adapter_sha256: str = ""
    """Of its weights: a run that goes on started from the same ones."""

    num_gpus: int = 1
    """Processes that train together, each on a GPU of its own; on a CPU those that a launcher has started."""

    sharded: bool = False
    """Whether each of them keeps a share of the language model's 4-bit layers, and gathers the others'."""

    @property
    def pack_step(self) -> int:
        """Tokens of which packs have a multiple."""
        return max(1, self.pack_tokens // PACK_LENGTHS) if self.cuda_graphs else 1

    @property
    def rows_per_step(self) -> int:
        """Rows that one optimizer step learns from, over all GPUs."""
        return self.batch_size * self.gradient_accumulation_steps

    @property
    def passes_per_step(self) -> int:
        """Forward passes of each GPU for one optimizer step; for gaps it has none."""
        return -(-self.gradient_accumulation_steps // self.num_gpus)
