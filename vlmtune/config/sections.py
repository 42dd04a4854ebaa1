"""Groups of keys that stand inside others: sources of rows, changes of pictures; and what every group is."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

HUB_ID = r"^[\w.-]+/[\w.-]+$"
SPLIT_NAME = r"^\w+(\.\w+)*$"
NOT_BLANK = r"\S"


class Section(BaseModel):
    """A strict, frozen group of keys: an unknown key is an error, never ignored."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, strict=True, allow_inf_nan=False
    )


PathText = Annotated[str, Field(min_length=1)]
Question = Annotated[str, Field(pattern=NOT_BLANK)]


class SourceSection(Section):
    """One source of rows: files (`path`) or a data set of the hub (`name`)."""

    path: PathText | None = None
    """A file, a pattern of files, or a folder. Relative to the config file."""
    name: Annotated[str, Field(pattern=HUB_ID)] | None = None
    """A data set of the hub (`org/data`)."""
    subset: PathText | None = None
    """Of a hub data set: the configuration, where it has several."""
    revision: PathText | None = None
    """Of a hub data set: branch, tag or commit. The commit is kept with the run."""
    split: Annotated[str, Field(pattern=SPLIT_NAME)] | None = None
    """Split of a hub data set or a folder. Default: `train` where there are several."""
    weight: Annotated[float, Field(gt=0.0, le=1000.0)] = 1.0
    """How often an epoch takes the rows: 2 twice, 0.5 half of them, another half each epoch. Training rows only."""
    columns: dict[str, str] = {}
    """As `data.columns`, which it replaces for this source."""
    prompt: Question | None = None
    """As `data.prompt`, which it replaces for this source."""
    image_dir: PathText | None = None
    """As `data.image_dir`, which it replaces for this source."""

    @model_validator(mode="after")
    def _refuse_contradictions(self) -> "SourceSection":
        """Raise where it is not one of the two, or has keys of the other."""
        if (self.path is None) == (self.name is None):
            raise ValueError("give one of path (files) and name (a hub data set)")
        if self.path is not None and (self.subset or self.revision):
            raise ValueError("subset and revision are for hub data sets (name)")
        return self


Sources = PathText | SourceSection | Annotated[tuple[PathText | SourceSection, ...], Field(min_length=1)]
"""Where rows come from: a path, a source, or a list of both."""


class AugmentSection(Section):
    """Random changes of training pictures, others in each epoch. Off: none."""

    rotation: Annotated[float, Field(ge=0.0, le=45.0)] = 0.0
    """Turn pictures by up to so many degrees either way; their size stays, the corners become white."""
    color_jitter: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Change brightness, contrast and saturation by up to this share."""
    jpeg_quality: Annotated[int, Field(ge=1, le=100)] | None = None
    """Compress pictures as JPEG, with a quality from this one to 100."""

    @property
    def is_on(self) -> bool:
        """Whether any picture is changed."""
        return bool(self.rotation or self.color_jitter or self.jpeg_quality)
