"""Names of transformers' Trainer, and of accelerate in it: hooks for vlmtune's own step, order of rows and files."""

from vlmtune.compat.borrowed import Attribute, Name, Override
from vlmtune.compat.libraries import ACCELERATE, TORCH, TRANSFORMERS

TRAINER = "transformers.Trainer"
TUNE_TRAINER = ("vlmtune.engine.trainer.TuneTrainer",)

ACCELERATOR = Attribute(
    TRANSFORMERS, TRAINER, "accelerator", "the object that takes batches to the device.", plain=True
)
DEVICE_PLACEMENT = Attribute(
    ACCELERATE,
    "accelerate.Accelerator",
    "device_placement",
    "batches go to the device one at a time: a step's batches are fetched together, and images are large.",
    read_by="accelerate.Accelerator.prepare_data_loader",
)
BASE_DATALOADER = Attribute(
    ACCELERATE,
    "accelerate.data_loader.DataLoaderAdapter",
    "base_dataloader",
    "the loader that starts the processes: what is set on the one around it does not reach them.",
    read_by="accelerate.data_loader.DataLoaderShard.__iter__",
)
PERSISTENT_PROCESSES = Attribute(
    TORCH,
    "torch.utils.data.DataLoader",
    "_iterator",
    "processes that outlive an epoch belong to it, and it is let go of with the loader, whenever that is.",
    read_by="torch.utils.data.DataLoader.__iter__",
)
END_PROCESSES = Name(
    TORCH,
    "torch.utils.data.dataloader._MultiProcessingDataLoaderIter._shutdown_workers",
    "nothing public ends them; they ignore signals, so a process that ends with them still there waits for ever.",
)
CALLBACK_HANDLER = Attribute(
    TRANSFORMERS, TRAINER, "callback_handler", "an evaluation of vlmtune's own tells callbacks by it.", plain=True
)
TOLD_OF_EVALUATION = Attribute(
    TRANSFORMERS,
    "transformers.trainer_callback.CallbackHandler",
    "on_evaluate",
    "how it tells them.",
    plain=True,
)
GET_LENGTH_GROUPED_INDICES = Name(
    TRANSFORMERS,
    "transformers.trainer_pt_utils.get_length_grouped_indices",
    "the order of rows of similar length that Trainer's own sampler has; that sampler takes no epoch.",
    takes="lengths, batch_size, *, generator",
)

PLACE_MODEL_ON_DEVICE = Override(
    TRANSFORMERS,
    "transformers.TrainingArguments.place_model_on_device",
    ("vlmtune.engine.arguments.Arguments",),
    "the model is where it belongs: Trainer would bring parts that are in main memory to the card.",
    read_by="transformers.Trainer",
)
TRAIN_SAMPLER = Override(
    TRANSFORMERS,
    "transformers.Trainer._get_train_sampler",
    TUNE_TRAINER,
    "the order of a resumed run depends on seed and epoch alone.",
    read_by="transformers.Trainer.get_train_dataloader",
)
TRAIN_DATALOADER = Override(
    TRANSFORMERS,
    "transformers.Trainer.get_train_dataloader",
    TUNE_TRAINER,
    "signals that all processes of a run are sent are answered by the one that trains.",
)
CREATE_OPTIMIZER = Override(
    TRANSFORMERS,
    "transformers.Trainer.create_optimizer",
    TUNE_TRAINER,
    "the plan's optimizer, which the estimate builds too.",
)
CREATE_SCHEDULER = Override(
    TRANSFORMERS,
    "transformers.Trainer.create_scheduler",
    TUNE_TRAINER,
    "the first step has a learning rate above 0.",
)
TRAINING_STEP = Override(
    TRANSFORMERS,
    "transformers.Trainer.training_step",
    TUNE_TRAINER,
    "it computes vlmtune's loss, and no memory, or a loss that is no number, stops the run and names the rows.",
)
CLIP_GRAD_NORM = Override(
    TRANSFORMERS,
    "transformers.Trainer._clip_grad_norm",
    TUNE_TRAINER,
    "it looks for what has gradients among all parameters of the model, which takes time at each step.",
)
GET_BATCH_SAMPLES = Override(
    TRANSFORMERS,
    "transformers.Trainer.get_batch_samples",
    TUNE_TRAINER,
    "it fetches a step's batches: what they hold and how long it took is counted there.",
)
EVALUATE = Override(
    TRANSFORMERS,
    "transformers.Trainer.evaluate",
    TUNE_TRAINER,
    "the mean loss a labelled token, one row at a time.",
)
SAVE_CHECKPOINT = Override(
    TRANSFORMERS,
    "transformers.Trainer._save_checkpoint",
    TUNE_TRAINER,
    "a checkpoint is marked when it is whole.",
)
SAVE = Override(
    TRANSFORMERS,
    "transformers.Trainer._save",
    TUNE_TRAINER,
    "the adapter without the model card that PEFT makes up, or the trained weights alone.",
    read_by="transformers.Trainer.save_model",
)
LOAD_FROM_CHECKPOINT = Override(
    TRANSFORMERS,
    "transformers.Trainer._load_from_checkpoint",
    TUNE_TRAINER,
    "it reads what `_save` wrote.",
    read_by="transformers.Trainer.train",
)
LOAD_RNG_STATE = Override(
    TRANSFORMERS,
    "transformers.Trainer._load_rng_state",
    TUNE_TRAINER,
    "of several processes, each goes on with random numbers of its own.",
)
FLOATING_POINT_OPS = Override(
    TRANSFORMERS,
    "transformers.Trainer.floating_point_ops",
    TUNE_TRAINER,
    "counting parameters at each step costs time, and nobody reads the sum.",
)

EXPORTABLE_STATE = Name(
    TRANSFORMERS,
    "transformers.trainer_callback.ExportableState",
    "Trainer keeps the state of a callback that derives from it in each checkpoint.",
)
EXPORTED_STATE = Override(
    TRANSFORMERS,
    "transformers.trainer_callback.ExportableState.state",
    ("vlmtune.engine.callbacks.Recorder",),
    "what a checkpoint keeps of the recorder.",
    read_by="transformers.Trainer._save_checkpoint",
)
STATEFUL_CALLBACKS = Attribute(
    TRANSFORMERS,
    "transformers.TrainerState",
    "stateful_callbacks",
    "what checkpoints keep of callbacks, by the names of their classes.",
    read_by="transformers.Trainer._save_checkpoint",
)
COMPUTE_STEPS = Attribute(
    TRANSFORMERS,
    "transformers.TrainerState",
    "compute_steps",
    "a resumed state brings the intervals of its checkpoint; this sets those of the config.",
    read_by=TRAINER,
)
