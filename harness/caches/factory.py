"""A user's cache factory, by the name of its module."""

import ast
import importlib
import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from harness.subject.errors import one_line
from schemes.errors import UserError


@dataclass(frozen=True)
class Factory:
    """A user's cache factory; called with model.config it gives a cache. name: as a spec, its arguments in order."""

    name: str
    make: Callable[..., Any]
    arguments: dict[str, Any]

    def __call__(self, config: Any) -> Any:
        return self.make(config, **self.arguments)


def load_factory(path: str) -> Factory:
    """The callable at "module:name", or "module:name(window=64)" with keyword arguments as Python literals.

    The current folder is looked in first. ValueError where there is none, or where it does not take the arguments.
    """
    where = f"--cache {path!r}"
    target, opening, inside = path.strip().partition("(")
    module_name, colon, name = target.partition(":")
    if not colon or not name:
        raise UserError(f"{where}: give module:factory, such as my_caches:make_cache")
    arguments = _arguments(where, name, opening + inside) if opening else {}
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # a module of the user's may raise anything
        raise UserError(f"{where}: {module_name} cannot be imported: {one_line(error)}") from None
    make = getattr(module, name, None)
    if not callable(make):
        raise UserError(f"{where}: {module_name} has no callable {name!r}")
    try:
        signature = inspect.signature(make)
    except (TypeError, ValueError):  # a builtin may have none
        signature = None
    if signature:
        try:
            signature.bind(None, **arguments)
        except TypeError as error:
            raise UserError(f"{where}: {name}{signature} cannot be called so: {error}") from None
    told = ", ".join(f"{key}={arguments[key]!r}" for key in sorted(arguments))
    return Factory(f"{target}({told})" if told else target, make, arguments)


def _arguments(where: str, name: str, text: str) -> dict[str, Any]:
    """The keyword arguments of "(window=64)"."""
    example = f"give keyword arguments in parentheses, such as {name}(window=64)"
    try:
        call = ast.parse(f"f{text}", mode="eval").body
    except SyntaxError as error:
        raise UserError(f"{where}: {text!r} cannot be read ({error.msg}); {example}") from None
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
        raise UserError(f"{where}: {text!r} is more than one call; {example}")
    if call.args or any(keyword.arg is None for keyword in call.keywords):
        raise UserError(f"{where}: {text!r} has an argument without a name; {example}")
    arguments = {}
    for keyword in call.keywords:
        assert keyword.arg is not None
        if keyword.arg in arguments:
            raise UserError(f"{where}: {keyword.arg} is given twice")
        try:
            arguments[keyword.arg] = ast.literal_eval(keyword.value)
        except ValueError:
            raise UserError(
                f"{where}: {keyword.arg}={ast.unparse(keyword.value)} is no Python literal; give a number, a string in "
                "quotes, True, False, None, or a list, tuple or dict of these"
            ) from None
    return arguments
