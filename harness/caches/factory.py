"""A user's cache factory, by the name of its module."""

import ast
import functools
import hashlib
import importlib
import inspect
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

from kvdelta.harness.raising import RAISED, reason_of
from kvdelta.harness.subject.errors import one_line
from kvdelta.harness.time_limit import at_most, check_time_limit
from kvdelta.schemes.errors import UserError


@dataclass(frozen=True)
class Factory:
    """A user's cache factory; called with model.config it gives a cache.

    call: module, name and arguments, in order. name: the call with a hash of the module, so that an edited factory is
    another. sha256: of the module's file, or of all files of its package.
    """

    call: str
    make: Callable[..., Any]
    arguments: dict[str, Any]
    sha256: str

    @property
    def name(self) -> str:
        module, _, rest = self.call.partition(":")
        return f"{module}#{self.sha256[:8]}:{rest}"

    def __call__(self, config: Any) -> Any:
        with _current_folder_last():
            return self.make(config, **self.arguments)


def load_factory(path: str, time_limit: float | None = None) -> Factory:
    """The callable at "module:name", or "module:name(window=64)" with keyword arguments as Python literals.

    Modules may lie in the current folder, which is looked in last: nothing there hides a module that others import.
    time_limit: seconds that importing the module may take. UserError where there is none, or where it does not take the arguments.
    """
    where = f"--cache {path!r}"
    target, opening, inside = path.strip().partition("(")
    module_name, colon, name = target.partition(":")
    if not colon or not name:
        raise UserError(f"{where}: give module:factory, such as my_caches:make_cache")
    arguments = _arguments(where, name, opening + inside) if opening else {}
    module = _module(where, module_name, time_limit)
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
    ordered = ", ".join(f"{key}={arguments[key]!r}" for key in sorted(arguments))
    return Factory(f"{target}({ordered})" if ordered else target, make, arguments, _sha256(module))


def _module(where: str, name: str, time_limit: float | None) -> ModuleType:
    if time_limit is not None:
        check_time_limit()
    importlib.invalidate_caches()
    with _current_folder_last():
        try:
            with at_most(time_limit):
                module = importlib.import_module(name)
        except RAISED as error:
            raise UserError(f"{where}: {name} cannot be imported: {reason_of(error)}") from None
    outermost = name.partition(".")[0]
    here = PathFinder.find_spec(outermost, [os.getcwd()])
    origin = getattr(sys.modules[outermost].__spec__, "origin", None)
    if here and here.origin and here.origin != origin:
        raise UserError(f"{where}: another {outermost} ({origin}) hides the one in this folder; rename the one here")
    return module


@contextmanager
def _current_folder_last() -> Iterator[None]:
    here = os.getcwd()
    if here in sys.path or "" in sys.path:
        yield
        return
    sys.path.append(here)
    try:
        yield
    finally:
        with suppress(ValueError):  # the module may have removed it
            sys.path.remove(here)


@functools.cache  # what was imported stays as it is, whatever becomes of the file
def _sha256(module: ModuleType) -> str:
    package = sys.modules[module.__name__.partition(".")[0]]
    folders = [Path(folder) for folder in getattr(package, "__path__", [])]
    files = {str(path.relative_to(folder)): path for folder in folders for path in folder.rglob("*.py")}
    if not folders and (file := getattr(module, "__file__", None)):  # a module that is built in has none
        files[Path(file).name] = Path(file)
    digest = hashlib.sha256()
    for name in sorted(files):
        digest.update(f"{name}\0{hashlib.sha256(files[name].read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()


def _arguments(where: str, name: str, text: str) -> dict[str, Any]:
    """The keyword arguments of "(window=64)"."""
    example = f"give keyword arguments in parentheses, such as {name}(window=64)"
    try:
        call = ast.parse(f"f{text}", mode="eval").body
    except SyntaxError as error:
        raise UserError(f"{where}: {text!r} cannot be read ({error.msg}); {example}") from None
    except (ValueError, MemoryError, RecursionError) as error:  # a null byte; thousands of parentheses
        raise UserError(f"{where}: {text!r} cannot be read ({one_line(error)}); {example}") from None
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
        except (ValueError, TypeError):  # TypeError: {[1]: 2}
            raise UserError(
                f"{where}: {keyword.arg}={ast.unparse(keyword.value)} is no Python literal; give a number, a string in "
                "quotes, True, False, None, or a list, tuple or dict of these"
            ) from None
    return arguments
