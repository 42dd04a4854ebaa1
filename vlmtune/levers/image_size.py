"""Image size: larger images are shrunk, where the model takes images by their size."""

from typing import TYPE_CHECKING

from vlmtune.config.schema import TrainingConfig
from vlmtune.config.values import Values
from vlmtune.families.facts import SMALLEST_IMAGE_PX, ModelFacts
from vlmtune.levers.base import WORK, Choice, Decision, GivesUp, Lever, OnResume, Saving

if TYPE_CHECKING:
    from vlmtune.plan.types import Device

KEY = "data.image_size"
LARGEST_PX, STEP_PX = 1288, 28


def _decide(config: TrainingConfig, model: ModelFacts, device: "Device") -> Decision:
    wish = config.data.image_size
    settings = model.image_settings(wish)
    choices = (Choice(KEY, str(wish), settings.note),) if settings.note else ()
    return Decision({"image_size": wish, "image_overrides": settings.overrides}, choices)


def _smaller(config: TrainingConfig, model: ModelFacts | None, text_tokens: int) -> list[Values]:
    if model is not None and model.fixed_images:
        return []
    side_px = config.data.image_size or LARGEST_PX
    steps = []
    while side_px > SMALLEST_IMAGE_PX:
        side_px = max(SMALLEST_IMAGE_PX, (side_px - side_px // 16) // STEP_PX * STEP_PX)
        steps.append({KEY: side_px})
    return steps


IMAGE_SIZE = Lever(
    name="Size of images",
    keys=(KEY,),
    costs="detail in every image",
    decide=_decide,
    fields=("image_size", "image_overrides"),
    savings=(Saving(GivesUp.IMAGE_DETAIL, "smaller images: less detail", _smaller, spares=WORK),),
    on_resume=OnResume.UNTIL_CHECKPOINT,
)
