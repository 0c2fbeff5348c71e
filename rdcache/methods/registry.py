"""The catalogue of methods and presets. A method enters it by the decorator over its class."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from rdcache.configs import validated_options
from rdcache.errors import UnknownNameError, UsageError
from rdcache.methods.base import Method, MethodConfig, MethodContext, one_tap_only

MethodClass = TypeVar("MethodClass", bound=type[Method])


@dataclass(frozen=True)
class MethodCard:
    """One entry of the catalogue: a method, or a preset of one.

    Attributes:
        name: as given to `--method`.
        title: what the student learns from, in one line.
        needs: what a store must hold.
        paper: where it comes from: authors and venue.
        year: of that paper.
        method: the class.
        options: the preset's values for options of the method.
        training: the preset's values for options of the training, such as `lr`.
    """

    name: str
    title: str
    needs: str
    paper: str
    year: int | None
    method: type[Method]
    options: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)

    def config(self, given: Mapping[str, Any]) -> MethodConfig:
        """Complete the options that were given by the preset's, and these by the defaults.

        Raises:
            UsageError: an option that the method does not have, or a value out of range.
        """
        return validated_options(self.name, self.method.Config, given, self.options)

    def fits(self, task: str, dimensions: int) -> bool:
        """Whether the method is for a task on images (2 dimensions) or volumes (3)."""
        return task in self.method.tasks and dimensions in self.method.dimensions

    def require_fit(self, task: str, dimensions: int) -> None:
        """Refuse a task or dimensions that the method is not for.

        Raises:
            UsageError: naming methods that are for them.
        """
        if self.fits(task, dimensions):
            return
        what = "images" if dimensions == 2 else "volumes"
        fitting = [it.name for it in list_methods() if it.fits(task, dimensions)]
        raise UsageError(f"{self.name} is not for {task} of {what}.", fitting=", ".join(fitting))

    def require_read(self, given: Mapping[str, Any]) -> None:
        """Refuse options that nothing would read. Those that are at their defaults may be given:
        so they are where all options of a method are listed.

        Raises:
            UsageError: naming the option.
        """
        config = self.config(given)
        for name in self.method.unread_options(config) & given.keys():
            if getattr(config, name) != type(config).model_fields[name].default:
                raise UsageError(
                    f"{name} is given, and nothing of {self.name} would read it.",
                    why="no logits of the teacher are compared (kd_weight is 0), or its head does "
                    "not train (teacher_head is not rd)",
                )


_CARDS: dict[str, MethodCard] = {}
_FOR_SEVERAL_TAPS: dict[type[Method], type[Method]] = {}


def register(
    name: str,
    *,
    title: str,
    needs: str = "labels only",
    paper: str = "–",
    year: int | None = None,
) -> Callable[[MethodClass], MethodClass]:
    """Decorate a method's class to enter it into the catalogue."""

    def enter(method: MethodClass) -> MethodClass:
        _CARDS[name] = MethodCard(name, title, needs, paper, year, method)
        return method

    return enter


def for_several_taps(of: type[Method] | None = None) -> Callable[[MethodClass], MethodClass]:
    """Decorate the class that is built where several taps are to be read, such as those of several
    teachers; without it a method refuses them.

    Args:
        of: the registered class that it takes the place of; by default the decorated one itself.
    """

    def enter(method: MethodClass) -> MethodClass:
        _FOR_SEVERAL_TAPS[of or method] = method
        return method

    return enter


def add_preset(
    name: str,
    of: str,
    *,
    title: str,
    options: Mapping[str, Any],
    training: Mapping[str, Any] | None = None,
    paper: str | None = None,
    year: int | None = None,
) -> None:
    """Enter a method under another name with other defaults; the paper is the method's unless
    another is given.
    """
    base = _CARDS[of]
    _CARDS[name] = replace(
        base,
        name=name,
        title=title,
        paper=paper or base.paper,
        year=year or base.year,
        options=dict(options),
        training=dict(training or {}),
    )


def list_methods() -> list[MethodCard]:
    """Describe every method and preset."""
    return list(_CARDS.values())


def find_method(name: str) -> MethodCard:
    """Look up a method or preset.

    Raises:
        UnknownNameError: there is none of this name.
    """
    if name not in _CARDS:
        raise UnknownNameError.of("method", name, _CARDS)
    return _CARDS[name]


def create_method(name: str, options: Mapping[str, Any], context: MethodContext) -> Method:
    """Build a method for a store and a student.

    Raises:
        UnknownNameError: no such method, option, or tap in the store.
        UsageError: options that do not go together or with the batch size, several taps for a
            method that reads one, or a task that the method is not for.
    """
    card = find_method(name)
    config, method = card.config(options), card.method
    card.require_fit(context.task, context.dimensions)
    taps = context.taps_asked_for(getattr(config, "tap", None))
    if len(taps) > 1:
        if method not in _FOR_SEVERAL_TAPS:
            raise one_tap_only(taps, "tap" if "tap" in type(config).model_fields else None)
        return _FOR_SEVERAL_TAPS[method](config, context)
    return method(config, context.of_teacher_of(taps[0]))
