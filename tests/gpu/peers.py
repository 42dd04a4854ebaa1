"""What is trained side by side, and the peers that train it: TRL and unsloth."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from gpu.profiled import Clock
from PIL import Image
from torch import nn
from transformers import Trainer

from vlmtune.config.schema import TrainingConfig
from vlmtune.hub.source import open_model
from vlmtune.plan.decide import make_plan
from vlmtune.plan.types import Device, RunPlan

STEPS = 24
CYCLE = STEPS // 4
"""Steps after which rows as long come again: vlmtune takes a quarter of the run's and sorts them by length."""
WARM_UP, PROFILED = STEPS - 2 * CYCLE, range(STEPS - CYCLE, STEPS)
RANK, ALPHA, LEARNING_RATE = 16, 32, 1e-4
OPTIM = "adamw_8bit"
"""As in unsloth's notebooks. Paged states are fetched for each parameter, which takes the card longer than the update,
and save 0.03 GiB here."""
MARKS = {"instruction_part": "<|im_start|>user\n", "response_part": "<|im_start|>assistant\n"}
"""Of the stand-in tokenizer's template."""
Offer = dict[str, Any]
"""`batch`: rows at a time; of vlmtune config values by dotted key."""


@dataclass(frozen=True)
class Run:
    """What is trained, and where its result goes."""

    tool: str
    folder: str
    """With the folder `model`; the rows of all sets are beside it."""
    rows: str
    """Name of the set."""
    rows_per_step: int
    offers: tuple[Offer, ...]

    @property
    def rows_path(self) -> Path:
        """The file of the rows."""
        return Path(self.folder).parent / f"{self.rows}.jsonl"

    @property
    def model(self) -> str:
        """The folder of the model."""
        return str(Path(self.folder) / "model")


def config_of(asked: Run, offer: Offer, number: int = 1) -> TrainingConfig:
    """Return the run as a config of vlmtune; each try has a number and a folder of its own."""
    values: dict = {
        "experiment_name": f"{asked.rows}-{number}",
        "output_dir": f"{asked.folder}/runs-{os.getpid()}",
        "model": {"name": asked.model},
        "data": {"train_path": str(asked.rows_path), "max_length": 16_384, "cache_features": False},
        "training": {
            "gradient_accumulation_steps": asked.rows_per_step,
            "max_steps": STEPS,
            "learning_rate": LEARNING_RATE,
            "optim": OPTIM,
            "save_steps": 1000,
            "lora": {"rank": RANK, "alpha": ALPHA},
        },
    }
    for key, value in offer.items():
        *parents, leaf = key.split(".")
        section = values
        for parent in parents:
            section = section.setdefault(parent, {})
        section[leaf] = value
    return TrainingConfig.model_validate(values)


def plan_of(asked: Run, offer: Offer, device: Device) -> RunPlan:
    """Return vlmtune's plan of the run."""
    config = config_of(asked, offer)
    return make_plan(config, open_model(config.model.name, None, Path(asked.folder)), device)


def facts_of(model: nn.Module) -> dict:
    """Return how much is trained, in which formats, and what loading took at most."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return {
        "trainable": sum(parameter.numel() for parameter in trained),
        "adapter_dtypes": sorted({str(parameter.dtype) for parameter in trained}),
        "load_peak_bytes": torch.cuda.max_memory_allocated(),
    }


class Peer:
    """A peer whose trainer is made of transformers': one model for all offers, its adapters put back."""

    model: nn.Module

    def __init__(self, asked: Run) -> None:
        self.asked = asked
        self.load()
        self.start: dict[str, torch.Tensor] = {}

    def train(self, offer: Offer, clock: Clock, hold: Callable[[], None]) -> dict:
        """Train so many rows at a time, as many a step as all tools."""
        trainer = self.trainer(offer["batch"], self.asked.rows_per_step // offer["batch"])
        self.model = trainer.model
        self._start_anew()
        trainer.add_callback(clock)
        facts = facts_of(self.model)
        hold()
        trainer.train()
        return {**facts, "losses": [record["loss"] for record in trainer.state.log_history if "loss" in record]}

    def _start_anew(self) -> None:
        trained = {name: one for name, one in self.model.named_parameters() if one.requires_grad}
        self.start = self.start or {name: one.detach().cpu().clone() for name, one in trained.items()}
        with torch.no_grad():
            for name, parameter in trained.items():
                parameter.grad = None
                parameter.copy_(self.start[name])

    def arguments(self, batch: int, accumulation: int) -> dict:
        """Return what all peers are told of a run."""
        return {
            "output_dir": f"{self.asked.folder}/{self.asked.tool}-{os.getpid()}",
            "per_device_train_batch_size": batch,
            "gradient_accumulation_steps": accumulation,
            "max_steps": STEPS,
            "learning_rate": LEARNING_RATE,
            "lr_scheduler_type": "cosine",
            "warmup_steps": 1,
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
            "bf16": True,
            "optim": OPTIM,
            "max_length": None,
            "dataloader_num_workers": 2,
            "dataloader_persistent_workers": True,
            "disable_tqdm": True,
            "seed": 42,
        }

    def rows(self) -> list[dict]:
        """Return the rows as the file has them, with the paths of their pictures."""
        lines = self.asked.rows_path.read_text(encoding="utf-8").splitlines()
        return [row | {"image": str(self.asked.rows_path.with_name(row["image"]))} for row in map(json.loads, lines)]

    def load(self) -> None:
        """Load the model in 4 bits."""
        raise NotImplementedError

    def trainer(self, batch: int, accumulation: int) -> Trainer:
        """Return a trainer of the adapted model."""
        raise NotImplementedError


class Trl(Peer):
    """TRL's SFTTrainer on a model that transformers has loaded."""

    liger = False

    def load(self) -> None:
        from accelerate import PartialState
        from transformers import AutoModelForImageTextToText, BitsAndBytesConfig

        quantization = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
        self.model = AutoModelForImageTextToText.from_pretrained(
            self.asked.model,
            dtype=torch.bfloat16,
            quantization_config=quantization,
            device_map={"": PartialState().local_process_index},
        )

    def trainer(self, batch: int, accumulation: int) -> Trainer:
        from peft import LoraConfig, PeftModel
        from transformers import AutoProcessor
        from trl import SFTConfig, SFTTrainer

        args = SFTConfig(
            **self.arguments(batch, accumulation),
            gradient_checkpointing=True,
            gradient_checkpointing_kwargs={"use_reentrant": False},
            use_liger_kernel=self.liger,
        )
        lora = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=self._targets(), task_type="CAUSAL_LM")
        return SFTTrainer(
            self.model,
            args=args,
            train_dataset=self._dataset(),
            processing_class=AutoProcessor.from_pretrained(self.asked.model),
            peft_config=None if isinstance(self.model, PeftModel) else lora,
        )

    def _targets(self) -> str:
        """Return the layers that vlmtune adapts."""
        targets = plan_of(self.asked, {}, Device("cuda", "GPU", True)).lora_targets
        assert targets
        return targets

    def _dataset(self) -> Any:
        from datasets import Dataset, List
        from datasets import Image as Picture

        def said(role: str, text: str) -> list[dict]:
            return [{"role": role, "content": text}]

        rows = self.rows()
        columns = {
            "images": [[{"path": row["image"], "bytes": None}] for row in rows],
            "prompt": [said("user", row["question"]) for row in rows],
            "completion": [said("assistant", row["answer"]) for row in rows],
        }
        return Dataset.from_dict(columns).cast_column("images", List(Picture()))


class TrlWithLiger(Trl):
    """The same with Liger's kernels in the language model."""

    liger = True


class Unsloth(Peer):
    """unsloth as its notebooks have it, without resizing pictures and with the tower frozen."""

    def load(self) -> None:
        from unsloth import FastVisionModel

        self.model, self.processor = FastVisionModel.from_pretrained(
            self.asked.model, load_in_4bit=True, use_gradient_checkpointing="unsloth", local_files_only=True
        )
        self.is_adapted = False

    def trainer(self, batch: int, accumulation: int) -> Trainer:
        from trl import SFTConfig, SFTTrainer
        from unsloth import FastVisionModel
        from unsloth.trainer import UnslothVisionDataCollator

        if not self.is_adapted:
            self.model = FastVisionModel.get_peft_model(
                self.model, finetune_vision_layers=False, r=RANK, lora_alpha=ALPHA, lora_dropout=0, bias="none"
            )
            self.is_adapted = True
        FastVisionModel.for_training(self.model)
        args = SFTConfig(
            **self.arguments(batch, accumulation),
            remove_unused_columns=False,
            dataset_text_field="",
            dataset_kwargs={"skip_prepare_dataset": True},
        )
        collator = UnslothVisionDataCollator(
            self.model, self.processor, resize="max", train_on_responses_only=True, **MARKS
        )
        return SFTTrainer(
            model=self.model,
            train_dataset=self._dataset(),
            processing_class=getattr(self.processor, "tokenizer", self.processor),
            data_collator=collator,
            args=args,
        )

    def _dataset(self) -> list[dict]:
        def said(role: str, *parts: dict) -> dict:
            return {"role": role, "content": list(parts)}

        def text(value: str) -> dict:
            return {"type": "text", "text": value}

        pictures = [{"type": "image", "image": Image.open(row["image"]).convert("RGB")} for row in self.rows()]
        return [
            {"messages": [said("user", picture, text(row["question"])), said("assistant", text(row["answer"]))]}
            for picture, row in zip(pictures, self.rows(), strict=True)
        ]
