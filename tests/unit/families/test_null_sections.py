"""A section of config.json that is null is one that is not there, as transformers reads it."""

import pytest
from tiny import TINY
from tiny.rows import TinyModel


@pytest.mark.parametrize("name", sorted(TINY))
def test_images_are_those_of_a_config_without_the_section(name, models):
    tiny: TinyModel = models(name)
    config, preprocessor = tiny.source.config, tiny.source.preprocessor
    found = [_images(tiny, {**config, "vision_config": None}, preprocessor)]
    found += [_images(tiny, {key: config[key] for key in config if key != "vision_config"}, preprocessor)]
    assert found[0] == found[1]


def _images(tiny: TinyModel, config: dict, preprocessor: dict) -> tuple:
    family = tiny.family
    return family.image_settings(config, preprocessor, None), family.image_tokens(config, preprocessor, 90, 60)
