"""What the text of a program that was compiled for TPU says of its cost. Plain Python.

The compiler writes `estimated_cycles` beside most of what it launches, and counts a loop's body once. Here
the launches are walked through from the entry, each as often as the loops around it turn. What has no
estimate (gathers, scatters, sorts, some copies) is named and never taken for free.
"""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

# Nothing is launched, or it runs beside the rest: what waits for it has the estimate.
_FREE = {
    "parameter", "constant", "bitcast", "tuple", "get-tuple-element", "after-all", "add-dependency",
    "opt-barrier", "partition-id", "replica-id", "copy-start", "copy-done", "slice-start", "slice-done",
    "async-start", "async-update", "async-done",
}  # fmt: skip
# Custom calls that only name memory.
_NAMES_MEMORY = ("AllocateBuffer", "ConcatBitcast", "AssumeGatherIndicesInBound")
# What a launch is named after, where it holds several.
_NAMED = (
    "sort", "scatter", "gather", "select-and-scatter", "convolution", "dot", "reduce-window", "custom-call",
    "dynamic-update-slice", "transpose", "reduce", "concatenate",
)  # fmt: skip
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%([\w.\-]+) = (.*)$")
_ARRAY = re.compile(r"\b([a-z]+)(\d*)\w*\[([\d,]*)\](?:\{([\d,]*)(?::T\(([\d,]+)\))?)?")


class Instruction(NamedTuple):
    """`name = shape opcode(rest`, as the text has it."""

    name: str
    shape: str
    opcode: str
    rest: str


class Launch(NamedTuple):
    """Something that the chip does, in one place of the program.

    Attributes:
      name: of the instruction; opcode: what it does, of a fusion the heaviest part of it.
      times: how often, loops counted.
      cycles: the compiler's estimate of one; None where there is none.
      shape: of the result, with its layout.
      source: the traced operation that it comes from.
    """

    name: str
    opcode: str
    times: int
    cycles: int | None
    shape: str
    source: str


class Program(NamedTuple):
    """All launches, and the loops whose length the text does not say: their bodies are counted once."""

    launches: list[Launch]
    unknown_loops: list[str]


def parse(text: str) -> Program:
    """The program's launches, from the text of `compiled.as_text()`."""
    computations, entry = _computations(text)
    unknown: list[str] = []
    return Program(list(_walk(computations, entry, 1, unknown)), unknown)


def _computations(text: str) -> tuple[dict[str, list[Instruction]], str]:
    found: dict[str, list[Instruction]] = {}
    entry = name = ""
    for line in text.splitlines():
        if opened := _COMPUTATION.match(line):
            name = opened[2]
            found[name] = []
            entry = name if opened[1] else entry
        elif (instruction := _INSTRUCTION.match(line)) and name:
            found[name].append(Instruction(instruction[1], *_split(instruction[2])))
    return found, entry


def _split(text: str) -> tuple[str, str, str]:
    """Shape, opcode and the rest; the shape of several results is in brackets."""
    depth = end = 0
    while text[end : end + 1] and (depth or text[end] != " "):
        depth += (text[end] == "(") - (text[end] == ")")
        end += 1
    opcode, _, rest = text[end + 1 :].partition("(")
    return text[:end], opcode, rest


def _walk(
    computations: dict[str, list[Instruction]], name: str, times: int, unknown: list[str]
) -> Iterator[Launch]:
    values = {one.name: one for one in computations.get(name, [])}
    for one in values.values():
        if one.opcode == "while":
            turns = _turns(one, computations, values)
            if turns is None:
                unknown.append(one.name)
            yield from _walk(
                computations, _called(one, "body"), times * (1 if turns is None else turns), unknown
            )
        elif one.opcode == "call":
            yield from _walk(computations, _called(one, "to_apply"), times, unknown)
        elif one.opcode == "conditional":
            branches = [list(_walk(computations, branch, times, unknown)) for branch in _branches(one)]
            yield from max(branches, key=cycles, default=[])
        elif one.opcode not in _FREE and not one.opcode.endswith("-done"):
            opcode = _does(one, computations)
            estimate = re.search(r'"estimated_cycles":"(\d+)"', one.rest)
            if opcode not in _NAMES_MEMORY and (estimate or math.prod(_sides(one.shape)) > 1):
                source = re.search(r'op_name="([^"]*)"', one.rest)
                number = int(estimate[1]) if estimate else None
                yield Launch(one.name, opcode, times, number, one.shape, source[1] if source else "")


def _turns(loop: Instruction, computations: dict, values: dict[str, Instruction]) -> int | None:
    """How often a loop turns; None where the text does not say: that depends on data."""
    if known := re.search(r"known_trip_count\W+n\W+(\d+)", loop.rest):
        return int(known[1])
    condition = {one.name: one for one in computations.get(_called(loop, "condition"), [])}
    constants = {name: int(one.rest.split(")")[0]) for name, one in condition.items() if _is_whole(one)}
    compared = [one for one in condition.values() if "direction=LT" in one.rest]
    if len(compared) != 1 or len(constants) != 1:
        return None
    counter = condition.get(_operands(compared[0])[0])
    place = re.search(r"index=(\d+)", counter.rest) if counter else None
    first = _first_value(loop, values, int(place[1])) if place else 0
    return max(0, next(iter(constants.values())) - first)


def _first_value(loop: Instruction, values: dict[str, Instruction], place: int) -> int:
    """What a counter starts from; 0 where that is not a constant of the same computation."""
    start = values.get(_operands(loop)[0])
    one = values.get(_operands(start)[place]) if start and start.opcode == "tuple" else None
    while one is not None and one.opcode == "copy":
        one = values.get(_operands(one)[0])
    return int(one.rest.split(")")[0]) if one is not None and _is_whole(one) else 0


def _is_whole(one: Instruction) -> bool:
    return one.opcode == "constant" and re.match(r"[su]\d+\[\]", one.shape) is not None


def _operands(one: Instruction) -> list[str]:
    return re.findall(r"%([\w.\-]+)", one.rest.partition(")")[0])


def _called(one: Instruction, key: str) -> str:
    found = re.search(rf"{key}=%?([\w.\-]+)", one.rest)
    return found[1] if found else ""


def _branches(one: Instruction) -> list[str]:
    listed = re.search(r"branch_computations=\{([^}]*)\}", one.rest)
    pair = [_called(one, "true_computation"), _called(one, "false_computation")]
    return re.findall(r"%?([\w.\-]+)", listed[1]) if listed else pair


def _does(one: Instruction, computations: dict[str, list[Instruction]]) -> str:
    """The heaviest part of what is launched, by `_NAMED`; of a custom call its target."""
    parts = computations.get(_called(one, "calls"), []) if one.opcode == "fusion" else [one]
    # A convolution's fusion calls one of its own for each operand.
    inner = [part for outer in parts for part in computations.get(_called(outer, "calls"), [])]
    opcodes = {part.opcode for part in [*parts, *inner]}
    name = next((name for name in _NAMED if name in opcodes), one.opcode)
    target = re.search(r'custom_call_target="([^"]*)"', one.rest)
    return target[1] if target else name


def cycles(launches: list[Launch]) -> int:
    """The sum of the estimates, loops counted."""
    return sum(one.times * one.cycles for one in launches if one.cycles is not None)


def nbytes(shape: str, *, padded: bool = False) -> int:
    """Of all arrays in an HLO shape; `padded` to the tiles of their layout, as they lie in memory."""
    return sum(_array_bytes(array, padded) for array in _ARRAY.findall(shape))


def _array_bytes(array: tuple[str, str, str, str, str], padded: bool) -> int:
    kind, bits, listed, order, tile = array
    sides = [int(side) for side in listed.split(",") if side]
    if padded and order and tile:
        # The layout names sides from the innermost, a tile's from the outermost.
        tiles = reversed([int(side) for side in tile.split(",")])
        for side, multiple in zip(order.split(","), tiles, strict=False):
            sides[int(side)] = -(-sides[int(side)] // multiple) * multiple
    return math.prod(sides) * (8 if kind == "pred" or not bits else int(bits)) // 8


def _sides(shape: str) -> list[int]:
    """Of the largest array in it."""
    arrays = [[int(side) for side in array[2].split(",") if side] for array in _ARRAY.findall(shape)]
    return max(arrays, key=math.prod, default=[])
