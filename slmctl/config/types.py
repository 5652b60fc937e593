"""What every part of the configuration is made of: strict sections, and the kinds of value that several parts share."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from slmctl.config.decides import declared
from slmctl.config.template import Template, TemplateError


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True, allow_inf_nan=False)

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        if cls.__pydantic_complete__:  # else its types are not known yet; it is rebuilt once they are
            declared(cls)

    @classmethod
    def model_rebuild(cls, **kwargs: Any) -> bool | None:
        built = super().model_rebuild(**kwargs)
        declared(cls)
        return built


def _file_name(name: str) -> str:
    """A name that becomes a folder must not lead out of it."""
    if not name or name in {".", ".."} or not all(c.isalnum() or c in "-_." for c in name):
        raise ValueError("use letters, digits, '-', '_' and '.' only: it becomes a folder's name")
    return name


def _local(path: str) -> str:
    if "://" in path:
        raise ValueError(
            "want a folder of this machine or of a shared file system; shards alone may lie elsewhere, with store_dir"
        )
    return path


def _known_store(place: str) -> str:
    if "://" in place:
        from fsspec.registry import known_implementations, registry

        protocol = place.partition("://")[0]
        if protocol not in {*known_implementations, *registry}:
            raise ValueError(f"{protocol}:// is no protocol that fsspec knows; s3://, gs:// and hf:// are some")
    return place


def _field_of(name: str) -> str:
    label, _, field = name.partition(":")
    if not field or not label.startswith(("tokens/", "scores/", "base", "reference")):
        raise ValueError(f"{name!r} names no field; copy it from the refusal, such as tokens/corpus:seed")
    return name


def _template(text: str) -> str:
    try:
        Template(text)
    except TemplateError as e:
        raise ValueError(str(e)) from None
    return text


TextTemplate = Annotated[str, AfterValidator(_template)]
Name = Annotated[str, AfterValidator(_file_name)]
AsList = BeforeValidator(lambda v: v if isinstance(v, list) or v is None else [v])
OffToo = BeforeValidator(lambda v: "off" if v is False else v)
"""For choices that have `off`, which YAML reads as false where it is not quoted."""
PositiveInt = Annotated[int, Field(gt=0)]
NonNegativeInt = Annotated[int, Field(ge=0)]
SeedInt = Annotated[int, Field(ge=0, lt=2**63)]
LocalPath = Annotated[str, AfterValidator(_local)]
StorePlace = Annotated[str, AfterValidator(_known_store)]
FieldName = Annotated[str, AfterValidator(_field_of)]
