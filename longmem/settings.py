"""Frozen settings that say in one line each what is wrong with them."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator

from longmem.errors import ConfigError


class Settings(BaseModel):
    """Frozen settings whose errors are readable."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise ConfigError(_readable(error, type(self).__name__)) from None

    @field_validator("*", mode="before")
    @classmethod
    def _no_bool_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        wanted = cls.model_fields[str(info.field_name)].annotation
        if isinstance(value, bool) and wanted is not bool:
            raise ValueError(f"it is no switch; give a value in place of {value}")
        return value


def _readable(error: ValidationError, settings: str) -> str:
    """One line per wrong setting, without pydantic's links."""
    lines = []
    for item in error.errors(include_url=False):
        name = ".".join(str(part) for part in item["loc"]) or settings
        if item["type"] == "extra_forbidden":
            lines.append(
                f"{settings} has no setting {name!r}; see longmem.config.{settings} for the list"
            )
        else:
            where = name if name == settings else f"{settings}.{name}"
            lines.append(f"{where}: {item['msg'].removeprefix('Value error, ')}{_given(item)}")
    return "\n".join(lines)


def _given(item: Any) -> str:
    """The value that was refused, if it is one value and the message, not being ours, does not tell."""
    told = not item["loc"] or item["type"] == "value_error"
    return "" if told else f" (given: {item['input']!r})"
