"""Qwen-VL-Chat as an ordinary transformers model, written from its description; importing this registers it.

After the import AutoConfig, AutoModelForImageTextToText and AutoProcessor know `model_type: qwen`, and published files
load as they are: names and fused weights are converted tensor by tensor, also straight into 4 bits.
"""

from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageTextToText, AutoProcessor

from vlmtune.models.qwen_vl.configuration import QwenVLConfig
from vlmtune.models.qwen_vl.conversion import register_conversion
from vlmtune.models.qwen_vl.modeling import QwenVLForConditionalGeneration, QwenVLModel
from vlmtune.models.qwen_vl.processing import QwenVLImageProcessor, QwenVLProcessor

__all__ = [
    "QwenVLConfig",
    "QwenVLForConditionalGeneration",
    "QwenVLImageProcessor",
    "QwenVLModel",
    "QwenVLProcessor",
]

AutoConfig.register(QwenVLConfig.model_type, QwenVLConfig)
AutoModel.register(QwenVLConfig, QwenVLModel)
AutoModelForImageTextToText.register(QwenVLConfig, QwenVLForConditionalGeneration)
AutoImageProcessor.register(
    QwenVLConfig, image_processor_classes={"pil": QwenVLImageProcessor, "torchvision": QwenVLImageProcessor}
)
AutoProcessor.register(QwenVLConfig, QwenVLProcessor)
register_conversion(QwenVLForConditionalGeneration.__name__)
