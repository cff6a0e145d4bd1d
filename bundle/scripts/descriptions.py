"""What an object was built with, as plain JSON: by which caches are found, trainings resumed and results recorded.

An object is described by the arguments of its constructor, never by its attributes: random transforms keep what they
drew last, readers which files they read, and a list of such names would grow by accident. So arguments are noted when
an object is made: those of MONAI's transforms from when this module is imported on, those of the bundle's own classes
that derive from :class:`Described`.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Iterable, Mapping
from enum import Enum
from pathlib import PurePath
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from monai.transforms import MapTransform, Transform

_GIVEN = "_given"  # attribute with the arguments of an object's constructor
_SHORT = ("monai", "diffusers", __name__.partition(".")[0])  # packages whose classes go by their bare names


class Described:
    """Base of classes whose objects :func:`describe` tells apart by what they were built with."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        return _note(super().__new__(cls), args, kwargs)

    def described(self) -> dict[str, Any]:
        """What tells this object from others; by default the arguments of its constructor, with their defaults."""
        return given(self)


class _Given(tuple):
    """Positional and named arguments, which a copy of the object has in common with it: among them may be a network."""

    def __deepcopy__(self, memo: dict[int, Any]) -> _Given:
        return self


def _note(made: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    # not by setattr: PyTorch's modules would take the modules among the arguments for their own
    object.__setattr__(made, _GIVEN, _Given((_kept(args), _kept(kwargs))))
    return made


def _kept(value: Any) -> Any:
    """Containers are copied, since who uses an object may change them."""
    if type(value) in (list, tuple, set):
        return type(value)(map(_kept, value))
    if type(value) is dict:
        return {key: _kept(item) for key, item in value.items()}
    return value.copy() if isinstance(value, np.ndarray) else value


def _note_arguments(kind: type) -> None:
    """Makes a class that is not the bundle's own note what its objects are built with."""
    make = vars(kind).get("__new__")
    if hasattr(make, "notes"):
        return

    def __new__(cls: type, *args: Any, **kwargs: Any) -> Any:
        return _note(object.__new__(cls) if make is None else make.__func__(cls, *args, **kwargs), args, kwargs)

    __new__.notes = True  # type: ignore[attr-defined]
    kind.__new__ = __new__  # type: ignore[method-assign, assignment]


_note_arguments(Transform)
_note_arguments(MapTransform)  # which makes its objects in its own way


def given(value: Any) -> dict[str, Any]:
    """The arguments that an object was built with, by name, with the defaults of those that were left out.

    Raises:
        TypeError: they were not noted: a transform made before this module was imported, or another object.
    """
    try:
        args, kwargs = vars(value)[_GIVEN]
    except KeyError:
        raise TypeError(
            f"What this {type(value).__name__} was built with is not known: it was made before "
            f"'{__name__}' was imported."
        ) from None
    bound = inspect.signature(type(value).__init__).bind(value, *args, **kwargs)
    bound.apply_defaults()
    arguments: dict[str, Any] = {}
    for name, argument in list(bound.arguments.items())[1:]:
        kind = bound.signature.parameters[name].kind
        arguments |= argument if kind is inspect.Parameter.VAR_KEYWORD else {name: argument}
    return arguments


def describe(value: Any) -> Any:
    """An object, or settings with objects in them, as plain JSON types: classes and what they were built with.

    Two objects that are built alike have equal descriptions in every process, however they have been used since; two
    that are built differently have different ones.

    Raises:
        TypeError: something that neither a constructor's arguments nor its own text tell from others.

    Example:
        >>> from monai.transforms import RandFlipd
        >>> describe(RandFlipd("image", prob=0.5))["RandFlipd"]["prob"]
        0.5
    """
    if value is None or isinstance(value, (bool, int, float, str)) and not isinstance(value, (Enum, np.generic)):
        return value
    if isinstance(value, Enum):
        return describe(value.value)
    if isinstance(value, Mapping):
        return _mapping(value)
    if isinstance(value, (set, frozenset)):
        return sorted(map(describe, value), key=repr)
    if isinstance(value, (list, tuple, range)):
        return [describe(item) for item in value]
    if isinstance(value, (np.ndarray, np.generic, torch.Tensor)):
        return value.tolist()
    if isinstance(value, functools.partial):
        return {"partial": describe([value.func, list(value.args), value.keywords])}
    if isinstance(value, (torch.dtype, torch.device, np.dtype, PurePath, slice, complex, bytes)):
        return str(value)
    if isinstance(value, type):
        return _name(value)
    if isinstance(value, (FunctionType, MethodType, BuiltinFunctionType, np.ufunc)):
        return _function(value)
    return {_name(type(value)): _object(value)}


def differences(then: Any, now: Any, place: str = "") -> list[str]:
    """In which values two descriptions differ, a line each: ``"loss.DiffuSAMLoss.lambda_seg: 1.0 then, 0.5 now"``."""
    if isinstance(then, Mapping) and isinstance(now, Mapping):
        names = [*then, *(name for name in now if name not in then)]
        missing = "nothing"
        pairs: Iterable[tuple[Any, Any, Any]] = (
            (name, then.get(name, missing), now.get(name, missing)) for name in names
        )
    elif isinstance(then, list) and isinstance(now, list) and len(then) == len(now):
        pairs = zip(range(len(then)), then, now)
    else:
        return [] if then == now else [f"{place or 'all'}: {_short(then)} then, {_short(now)} now"]
    return [
        line
        for name, first, second in pairs
        if first != second
        for line in differences(first, second, f"{place}.{name}" if place else str(name))
    ]


def _short(value: Any, longest: int = 80) -> str:
    text = str(value)
    return text if len(text) <= longest else f"{text[: longest - 3]}..."


def _mapping(value: Mapping[Any, Any]) -> Any:
    if all(isinstance(key, str) for key in value):
        return {str(key): describe(value[key]) for key in sorted(value)}
    # JSON knows no other keys: 1 and "1" are two
    return {"mapping": sorted(([describe(key), describe(item)] for key, item in value.items()), key=repr)}


def _name(kind: type) -> str:
    return (
        kind.__qualname__ if kind.__module__.partition(".")[0] in _SHORT else f"{kind.__module__}.{kind.__qualname__}"
    )


def _object(value: Any) -> Any:
    if isinstance(value, Described):
        return describe(value.described())
    if isinstance(value, Transform):
        return describe(given(value))
    if hasattr(value, "config") and isinstance(value.config, Mapping):  # diffusers notes its constructors' arguments
        return describe({key: item for key, item in value.config.items() if not key.startswith("_")})
    if isinstance(value, torch.optim.Optimizer):  # whose rates a schedule changes
        groups = [{**group, "lr": group.get("initial_lr", group["lr"])} for group in value.param_groups]
        left_out = ("params", "initial_lr")
        return describe([{key: item for key, item in group.items() if key not in left_out} for group in groups])
    if isinstance(value, torch.nn.Module):  # such as a loss of PyTorch's or MONAI's; weights are no setting
        plain = {key: item for key, item in vars(value).items() if key[0] != "_" and key != "training"}
        return describe({**plain, **dict(value.named_children())})
    state = {key: item for key, item in getattr(value, "__dict__", {}).items() if key != _GIVEN}
    if state:
        return describe(state)
    text = repr(value)
    if " at 0x" in text:
        raise TypeError(f"{text} cannot be told from others of its kind: derive its class from scripts.Described.")
    return text


def _function(value: Any) -> Any:
    """The name of a function that can be found by it; otherwise, as for a lambda, what it does."""
    module, name = getattr(value, "__module__", None) or "", getattr(value, "__qualname__", value.__name__)
    owner = getattr(value, "__self__", None)
    if owner is not None and not isinstance(owner, (type, ModuleType)):
        return {"method": [value.__name__, describe(owner)]}
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    if found is not None and (found == value or not isinstance(value, FunctionType)):
        return f"{module}.{name}"
    if not isinstance(value, FunctionType):
        return f"{module}.{name}"
    closure = [cell.cell_contents for cell in value.__closure__ or ()]
    return {"function": [_code(value.__code__), describe([value.__defaults__, value.__kwdefaults__, closure])]}


def _code(code: CodeType) -> Any:
    constants = [_code(each) if isinstance(each, CodeType) else _constant(each) for each in code.co_consts]
    return [code.co_code.hex(), constants, list(code.co_names), list(code.co_varnames), list(code.co_freevars)]


def _constant(value: Any) -> Any:
    """A constant of a function; the texts of its documentation and places count like any other."""
    return "..." if value is Ellipsis else describe(value)
