"""Small changes of Python text, each of which makes it compute something else, if it matters at all."""

import ast
import copy
from collections.abc import Iterator
from typing import NamedTuple

_PAIRS = """
Lt LtE GtE, LtE Lt Gt, Gt GtE LtE, GtE Gt Lt, Eq NotEq, NotEq Eq, Is IsNot, IsNot Is, In NotIn, NotIn In,
And Or, Or And, Add Sub, Sub Add, Mult Div, Div Mult, FloorDiv Mult, Mod Mult, Pow Mult, BitAnd BitOr,
BitOr BitAnd, LShift RShift, RShift LShift, MatMult, BitXor
"""
# Each operator and what may stand in its place.
_OPERATORS = {
    getattr(ast, names[0]): [getattr(ast, name) for name in names[1:]]
    for names in map(str.split, _PAIRS.split(","))
}
_RENAMED = {"maximum": "minimum", "max": "min", "argmax": "argmin", "floor": "ceil", "any": "all"}
_RENAMED |= {right: left for left, right in _RENAMED.items()}
# In place of these their argument would be an error at once.
_LEFT = {"isinstance", "len", "range", "enumerate", "zip", "getattr", "super", "sorted", "type"}
_MODULES = {"jax", "jnp", "np", "math", "functools", "optax", "dataclasses"}
# Types and what decorates are no behaviour. Nor are messages: nothing in a `raise` is mutated.
_SKIPPED = {"annotation", "returns", "decorator_list", "bases", "type_params"}


class Mutant(NamedTuple):
    """`line` of a file (as it is there, lines joined and spaces single) becomes `became`."""

    file: str
    line: str
    became: str
    number: int
    node: ast.AST
    new: ast.AST

    @property
    def key(self) -> tuple[str, str, str]:
        return self.file, self.line, self.became


def mutants_of(file: str, source: str) -> tuple[ast.Module, list[Mutant]]:
    """The tree of a file's text, and all mutants of it; their nodes lie in the tree."""
    tree = ast.parse(source)
    found = {}
    for node, keyword in _mutable(tree, None):
        for new in _alternatives(node, keyword):
            new = ast.copy_location(copy.copy(new), node)
            mutant = Mutant(file, *_spliced(source, node, new), node.lineno, node, new)
            if mutant.became != mutant.line:
                found.setdefault(mutant.key, mutant)
    return tree, list(found.values())


def mutated(tree: ast.Module, mutant: Mutant | None) -> ast.Module:
    """The tree, in which the mutant's node is exchanged for good."""
    return ast.fix_missing_locations(_Replace(mutant).visit(tree)) if mutant else tree


class _Replace(ast.NodeTransformer):
    def __init__(self, mutant: Mutant):
        self._mutant = mutant

    def visit(self, node: ast.AST) -> ast.AST:
        return self._mutant.new if node is self._mutant.node else super().generic_visit(node)


def _mutable(node: ast.AST, keyword: str | None) -> Iterator[tuple[ast.AST, str | None]]:
    """Every expression below that computes something, and the name of the argument that it is given as."""
    if isinstance(node, ast.expr):
        yield node, keyword
    if isinstance(node, ast.UnaryOp) and isinstance(node.operand, ast.Constant):
        return
    for name, value in ast.iter_fields(node):
        for child in value if isinstance(value, list) else [value]:
            skipped = isinstance(child, (ast.Raise, ast.Assert, ast.JoinedStr)) or _is_type(child)
            # Of `zip`: it tells a mistake in the lines around it, and there is none.
            skipped |= getattr(child, "arg", None) == "strict"
            if isinstance(child, ast.AST) and name not in _SKIPPED and not skipped:
                passed_on = keyword if isinstance(node, ast.keyword) else None
                yield from _mutable(child, child.arg if isinstance(child, ast.keyword) else passed_on)


def _is_type(node: object) -> bool:
    """A type alias, or an overload of a function."""
    if isinstance(node, ast.AnnAssign):
        return getattr(node.annotation, "id", None) == "TypeAlias"
    if isinstance(node, ast.FunctionDef):
        return any(getattr(decorator, "id", None) == "overload" for decorator in node.decorator_list)
    # At the top of a module `Row = Callable[[int], bool]`, or a `TypeVar`.
    value = node.value if isinstance(node, ast.Assign) and node.col_offset == 0 else None
    return isinstance(value, ast.Subscript) or getattr(getattr(value, "func", None), "id", None) == "TypeVar"


def _alternatives(node: ast.AST, keyword: str | None) -> Iterator[ast.AST]:
    match node:
        case ast.Compare(ops=[*operators]):
            for place, operator in enumerate(operators):
                for other in _OPERATORS[type(operator)]:
                    yield _with(node, ops=[*operators[:place], other(), *operators[place + 1 :]])
        case ast.BinOp() | ast.BoolOp():
            yield from (_with(node, op=other()) for other in _OPERATORS[type(node.op)])
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=value)):
            yield ast.Constant(1 - value) if value <= 1 else _with(node, operand=ast.Constant(value - 1))
            if value == 1:
                yield _with(node, operand=ast.Constant(2))
        case ast.UnaryOp():
            yield node.operand
        case ast.Constant(value=bool()):
            yield ast.Constant(not node.value)
        case ast.Constant(value=0) if keyword == "axis":
            yield ast.UnaryOp(ast.USub(), ast.Constant(1))
        case ast.Constant(value=int() | float()):
            others = [0, 2] if node.value == 1 else [node.value + 1]
            yield from (ast.Constant(type(node.value)(other)) for other in others)
        case ast.IfExp():
            yield from (node.body, node.orelse)
        case ast.Attribute(attr=name) if name in _RENAMED:
            yield _with(node, attr=_RENAMED[name])
        case ast.Name(id=name) if name in _RENAMED:
            yield _with(node, id=_RENAMED[name])
        case ast.Call():
            yield from _in_place_of_a_call(node)


def _in_place_of_a_call(node: ast.Call) -> Iterator[ast.AST]:
    """Without `where=`; a branch of `jnp.where`; what a function or a method is given, untouched."""
    if any(given.arg == "where" for given in node.keywords):
        yield _with(node, keywords=[given for given in node.keywords if given.arg != "where"])
    name = ast.unparse(node.func)
    first = [given for given in node.args if not isinstance(getattr(given, "value", None), str)][:1]
    if name.endswith(".where") and len(node.args) == 3:
        yield from node.args[1:]
    elif isinstance(node.func, ast.Attribute) and not _is_in_module(node.func):
        yield node.func.value
    elif first and name not in _LEFT and not isinstance(first[0], (ast.Starred, ast.GeneratorExp)):
        yield first[0]


def _is_in_module(node: ast.expr) -> bool:
    while isinstance(node, ast.Attribute):
        node = node.value
    return isinstance(node, ast.Name) and node.id in _MODULES


def _with(node: ast.AST, **fields: object) -> ast.AST:
    new = copy.copy(node)
    vars(new).update(fields)
    return new


def _spliced(source: str, node: ast.AST, new: ast.AST) -> tuple[str, str]:
    lines = [line.encode() for line in source.splitlines()]
    whole = b"\n".join(lines[node.lineno - 1 : node.end_lineno])
    end = len(whole) - len(lines[node.end_lineno - 1]) + node.end_col_offset
    text = ast.unparse(new)
    if not isinstance(new, (type(node), ast.Constant, ast.Name, ast.Call, ast.Attribute, ast.Subscript)):
        text = f"({text})"
    became = whole[: node.col_offset] + text.encode() + whole[end:]
    return " ".join(whole.decode().split()), " ".join(became.decode().split())
