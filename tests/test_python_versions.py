"""What one version of Python gets wrong, and the tests on another do not see."""

import ast
import builtins

from .test_architecture import FILES, ROOT

COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp)
SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.GeneratorExp, ast.ClassDef)


def inside(node, stop):
    """All nodes below one, none of those in what stops."""
    for child in ast.iter_child_nodes(node):
        yield child
        if not isinstance(child, stop):
            yield from inside(child, stop)


def names(nodes, context):
    return {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, context)}


def broken_names(tree):
    """CPython 3.12 to 3.12.3 puts list, set and dict comprehensions into the function around them, and then takes a global name
    that one of them reads for the variable of another: UnboundLocalError."""
    outside = names(inside(tree, (*SCOPES, *COMPREHENSIONS)), ast.Store) | set(dir(builtins))
    outside |= {node.name for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            outside |= {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
    for function in (node for node in ast.walk(tree) if isinstance(node, SCOPES[:2])):
        own = {arg.arg for arg in ast.walk(function.args) if isinstance(arg, ast.arg)}
        own |= names(inside(function, (*SCOPES, *COMPREHENSIONS)), ast.Store)
        bound, read = set(), set()
        for one in (node for node in inside(function, (*SCOPES, *COMPREHENSIONS)) if isinstance(node, COMPREHENSIONS)):
            here = names(inside(one, SCOPES), ast.Store)
            bound |= here
            read |= names(inside(one, SCOPES), ast.Load) - here
        yield from ((function.name, name) for name in (bound & read & outside) - own)


BROKEN = """
def number(x): return x
def f(rows):
    place = {row: number for number, row in enumerate(rows)}
    return [number(row) for row in rows]
"""


def test_no_comprehension_takes_a_name_that_python_3_12_loses():
    assert list(broken_names(ast.parse(BROKEN))) == [("f", "number")]
    found = [(str(path.relative_to(ROOT)), *one) for path in FILES for one in broken_names(ast.parse(path.read_text()))]
    assert not found, "rename the variable of the comprehension"
