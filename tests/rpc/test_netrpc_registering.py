"""Which objects can be registered for net/rpc, and under which names."""

import functools
from typing import Any

import pytest

from rpc25519_tools.errors import ConfigError
from rpc25519_tools.rpc.context import CallContext
from rpc25519_tools.rpc.methods import methods_of
from rpc25519_tools.rpc.registry import Registry
from tests.rpc.netrpc_services import Lab
from tests.rpc.nets import Net


class NoHints:
    def run(self, thing):  # type: ignore[no-untyped-def]  # the mistake
        return thing


class TwoArguments:
    def run(self, one: int, two: int) -> int:
        return one


class NotEncodable:
    def run(self, one: set[int]) -> int:
        return 1


class ByKeyword:
    def run(self, *, one: int) -> int:
        return one


class AnyNumber:
    def run(self, *one: int) -> int:
        return one[0]


class NoArgument:
    def run(self) -> int:
        return 1


class NothingAsArgument:
    def run(self, one: None) -> int:
        return 1


class UnknownAnnotation:
    def run(self, one: "Undefined") -> int:  # type: ignore[name-defined]  # noqa: F821
        return 1


class ContextLast:
    def run(self, one: int, context: CallContext) -> int:
        return one


class Nothing:
    value = 3


class SameInGo:
    def a_b(self, one: int) -> int:
        return one

    def AB(self, one: int) -> int:  # noqa: N802  # the clash
        return one


@pytest.mark.parametrize(
    ("service", "name", "text"),
    [
        (NoHints(), None, "NoHints.run: 'thing' has no annotation"),
        (TwoArguments(), None, "TwoArguments.run must take one argument"),
        (NotEncodable(), None, "cannot be encoded"),
        (ByKeyword(), None, "ByKeyword.run must take one argument"),
        (AnyNumber(), None, "AnyNumber.run must take one argument"),
        (NoArgument(), None, "NoArgument.run must take one argument"),
        (NothingAsArgument(), None, "cannot be encoded"),
        (UnknownAnnotation(), None, "annotations are of no use"),
        (ContextLast(), None, "ContextLast.run must take one argument"),
        (Nothing(), None, "Nothing has no public methods"),
        (SameInGo(), None, "SameInGo.AB stands for two methods"),
        (Lab(), "A.B", "'A.B' cannot be the name"),
        (Lab(), "", "cannot be the name"),
    ],
)
def test_what_cannot_be_offered_is_refused(
    service: Any, name: str | None, text: str
) -> None:
    if name == "":
        with pytest.raises(ConfigError, match=text):
            methods_of(service, name)
        return
    with pytest.raises(ConfigError, match=text):
        Registry().register(service, name)


def test_a_name_is_registered_once() -> None:
    registry = Registry()
    registry.register(Lab())
    with pytest.raises(ConfigError, match="registered twice"):
        registry.register(Lab())
    registry.register(Lab(), "Other")


class Base:
    def inherited(self, one: int) -> int:
        return one + 1


class Mixed(Base):
    """Has members of every sort; only its methods are served."""

    value = 3

    def __init__(self) -> None:
        self.asked = 0

    @property
    def trap(self) -> int:
        self.asked += 1
        raise RuntimeError("asked for its value")

    @functools.cached_property
    def cached_trap(self) -> int:
        self.asked += 1
        return 1

    @staticmethod
    def static(one: int) -> int:
        return one + 2

    @classmethod
    def of_class(cls, one: int) -> int:
        return one + 3

    def optional_context(self, context: CallContext | None, one: int) -> int:
        assert context is not None
        return one + 4

    async def with_html_in_name(self, one: int) -> int:
        return one + 5

    def __call__(self, one: int) -> int:
        return one


async def test_methods_of_every_sort_are_served_in_both_spellings(memory: Net) -> None:
    registry, mixed = Registry(), Mixed()
    registry.register(mixed, "M")
    assert mixed.asked == 0
    assert sorted(registry.methods) == [
        "M.Inherited",
        "M.OfClass",
        "M.OptionalContext",
        "M.Static",
        "M.WithHtmlInName",
        "M.inherited",
        "M.of_class",
        "M.optional_context",
        "M.static",
        "M.with_html_in_name",
    ]
    expected = {"inherited": 1, "static": 2, "ofclass": 3, "optionalcontext": 4}
    async with memory.pair(registry) as (_, client):
        for name in registry.methods:
            key = name[2:].lower().replace("_", "")
            wanted = expected.get(key, 5)
            assert await client.netrpc.call(name, 0, int) == wanted


async def test_two_objects_of_a_class_are_served_under_two_names(memory: Net) -> None:
    class Counter:
        def __init__(self) -> None:
            self.count = 0

        def add(self, by: int) -> int:
            self.count += by
            return self.count

    registry = Registry()
    registry.register(Counter(), "One")
    registry.register(Counter(), "Two")
    async with memory.pair(registry) as (_, client):
        call = client.netrpc.call
        assert [await call("One.Add", 1, int), await call("One.Add", 2, int)] == [1, 3]
        assert await call("Two.add", 5, int) == 5


def test_a_refused_object_leaves_nothing_behind() -> None:
    registry = Registry()
    registry.register(Lab(), "Lab")
    before = dict(registry.methods)

    class Twice:
        def other(self, one: int) -> int:
            return one

        def turn(self, one: int) -> int:
            return one

    with pytest.raises(ConfigError, match="registered twice"):
        registry.register(Twice(), "Lab")
    assert registry.methods == before
