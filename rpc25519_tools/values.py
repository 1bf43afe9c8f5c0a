"""A decorator for small values that are made by the hundred thousand.

A frozen dataclass costs three times as much to make as a plain one, since each of its
fields goes through ``object.__setattr__``. So a value class is frozen for the type
checker, which refuses every assignment, and plain when it runs.
"""

from dataclasses import dataclass, field
from typing import TypeVar, dataclass_transform

T = TypeVar("T")


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def value_class(cls: type[T]) -> type[T]:
    """Make a dataclass with slots whose instances are not to be changed."""
    return dataclass(slots=True)(cls)


@dataclass_transform(
    frozen_default=True, kw_only_default=True, field_specifiers=(field,)
)
def keyword_value_class(cls: type[T]) -> type[T]:
    """Make such a class whose fields are given by name."""
    return dataclass(slots=True, kw_only=True)(cls)
