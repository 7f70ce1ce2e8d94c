"""The collectives of a compiled training step: what each is, what it moves on a device, and what for.

Read from the text of the compiled program, after XLA has merged collectives that are ready together. It names
a merged one after its parts, as in `jit(step)/shard_map/(psum:psum:jvp()/psum)`, part for part in the order
of the arrays. What is not understood is counted as "unclassified", never left out.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

KINDS = (
    "all-gather", "all-reduce", "all-to-all", "ragged-all-to-all", "reduce-scatter", "collective-permute",
    "collective-broadcast",
)  # fmt: skip
PURPOSES = ("gradient", "mining", "metrics", "batch norm", "unclassified")
_INSTRUCTION = re.compile(rf" = (?P<result>.*?) (?P<kind>{'|'.join(KINDS)})(?P<start>-start)?\(")
# On one device shard_map leaves no trace.
_OF_THE_STEP = re.compile(r"jit\(\w+\)/(shard_map/)?psum")
_SHAPE = re.compile(r"([a-z]\w*)\[([\d,<=]*)\]")


class Piece(NamedTuple):
    """An array that a collective gives on one device.

    Attributes:
      dtype, shape: as HLO has them, "f32" and (3, 3, 64, 64).
      name: where in the traced program it comes from; "" where that was lost.
    """

    dtype: str
    shape: tuple[int, ...]
    name: str

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return -(-self.size * _bits(self.dtype) // 8)


class Collective(NamedTuple):
    """One collective of a program, an asynchronous start and its done counted once.

    Attributes:
      kind: one of `KINDS`.
      pieces: what it gives.
      group: how many devices take part together; 0 where all do and the text does not say how many.
    """

    kind: str
    pieces: tuple[Piece, ...]
    group: int

    @property
    def nbytes(self) -> int:
        return sum(piece.nbytes for piece in self.pieces)


class Share(NamedTuple):
    """What the collectives of a step do for one purpose, on one device.

    Attributes:
      collectives: how many have a part in it.
      own: how many of these carry nothing of batch norm, which XLA lets other reductions ride on.
      kinds: theirs, each once.
      sent: bytes that the device puts in.
      received: bytes that it gets out.
    """

    collectives: int
    own: int
    kinds: tuple[str, ...]
    sent: int
    received: int


def parse(hlo: str) -> list[Collective]:
    """The collectives in the text of a compiled program. One in a loop's body is found once.

    Raises:
      ValueError: for an array of an unknown type.
    """
    return [_collective(line, match) for line in hlo.splitlines() if (match := _INSTRUCTION.search(line))]


def collective_bytes(hlo: str) -> tuple[int, int]:
    """Number of collectives, and bytes of what they return on one device."""
    found = parse(hlo)
    return len(found), sum(one.nbytes for one in found)


def purposes(
    found: Iterable[Collective], *, gradient: Sequence[int], metrics: Sequence[int]
) -> dict[str, Share]:
    """What the collectives of a step of `make_train_step` under shard_map are for, by `PURPOSES`.

    By their names: a psum inside a normalisation layer is batch norm's; one of the loss outside of any layer
    is the metrics'; the step's own pmean has gradient, batch statistics and metrics, told apart by their
    sizes; an all-gather of integers is mining's.

    Args:
      found: from `parse`.
      gradient: numbers in each float32 array of the parameters and the batch statistics.
      metrics: the same of the metrics.
    """
    left = {"gradient": Counter(gradient), "metrics": Counter(metrics)}
    pieces: list[tuple[Collective, list[tuple[str, Piece]]]] = []
    # The largest first: of arrays of one size, the gradient's travel with the rest of it.
    for one in sorted(found, key=lambda one: -one.nbytes):
        pieces.append((one, [(_purpose(one.kind, piece, left), piece) for piece in one.pieces]))
    return {purpose: _share(purpose, pieces) for purpose in PURPOSES}


def _collective(line: str, match: re.Match) -> Collective:
    kind = match["kind"]
    shapes = _SHAPE.findall(match["result"])
    if match["start"] and kind in ("all-gather", "collective-permute"):
        # Operands, then results, then for a permutation two numbers of the runtime.
        shapes = [shape for shape in shapes if shape != ("u32", "")]
        shapes = shapes[len(shapes) // 2 :]
    name = re.search(r'op_name="([^"]*)"', line)
    names = _names(name[1] if name else "", len(shapes))
    pieces = []
    for (dtype, sides), name in zip(shapes, names, strict=True):
        _bits(dtype)
        sides = tuple(int(side.lstrip("<=")) for side in sides.split(",") if side)
        pieces.append(Piece(dtype, sides, name))
    return Collective(kind, tuple(pieces), _group(line))


def _bits(dtype: str) -> int:
    if dtype in ("pred", "token"):
        return 8 if dtype == "pred" else 0
    known = re.fullmatch(r"(?:bf|f|s|u|c)(\d+)(?:e\w+)?", dtype)
    if known is None:
        raise ValueError(f"an array of type {dtype} in a collective: its size is not known")
    return int(known[1])


def _group(line: str) -> int:
    """Members of a replica group; 0 where nothing known says them.

    Written {{0,1},{2,3}}; as shape of an iota, [groups,members]<=[n]; or by newer XLA as axes of a mesh,
    mesh['a'=2,'b'=4] {'b'}, where 'b':(2)2 is an axis of 2 within b.
    """
    listed = re.search(r"replica_groups=\{\{([\d,]*)\}", line)
    if listed:
        return len(listed[1].split(","))
    iota = re.search(r"replica_groups=\[(\d+),(\d+)\]", line)
    if iota:
        return int(iota[2])
    mesh = re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", line)
    if mesh is None:
        return 0
    sides = dict(re.findall(r"'([^']*)'=(\d+)", mesh[1]))
    axes = re.findall(r"'([^']*)'(?::\(\d+\)(\d+))?", mesh[2])
    return math.prod(int(part or sides[name]) for name, part in axes)


def _names(joined: str, count: int) -> list[str]:
    """The name of each of `count` parts; "" for all if they cannot be told apart."""
    for start, end in _brackets(joined):
        parts = _split(joined[start + 1 : end])
        if len(parts) > 1:
            names = [joined[:start] + part + joined[end + 1 :] for part in parts]
            return names if len(names) == count else [""] * count
    return [joined] * count


def _brackets(text: str) -> Iterable[tuple[int, int]]:
    """Where pairs of brackets open and close, outer ones first."""
    opened, pairs = [], []
    for place, letter in enumerate(text):
        if letter == "(":
            opened.append(place)
        elif letter == ")" and opened:
            pairs.append((opened.pop(), place))
    return sorted(pairs)


def _split(text: str) -> list[str]:
    """At the colons outside of brackets."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter == "(") - (letter == ")")
        if letter == ":" and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def _purpose(kind: str, piece: Piece, left: dict[str, Counter]) -> str:
    """What one array is moved for; what the step's pmean moves is taken off `left`."""
    if "/while/" in piece.name:
        # As often as the loop turns, which the text does not say.
        return "unclassified"
    if kind == "all-gather":
        wanted = piece.name.endswith("/all_gather") and piece.dtype in ("s32", "s64")
        return "mining" if wanted else "unclassified"
    if kind != "all-reduce" or piece.dtype != "f32":
        return "unclassified"
    if piece.name.endswith("/norm/psum"):
        return "batch norm"
    if piece.name.endswith("/jvp()/psum"):
        return "metrics"
    if _OF_THE_STEP.fullmatch(piece.name):
        for purpose, sizes in left.items():
            if sizes[piece.size]:
                sizes[piece.size] -= 1
                return purpose
    return "unclassified"


def _share(purpose: str, pieces: list[tuple[Collective, list[tuple[str, Piece]]]]) -> Share:
    with_it = [(one, named) for one, named in pieces if any(name == purpose for name, _ in named)]
    own = [one for one, named in with_it if all(name != "batch norm" for name, _ in named)]
    sent = received = 0
    for one, named in with_it:
        nbytes = sum(piece.nbytes for name, piece in named if name == purpose)
        received += nbytes
        members = max(one.group, 1)
        sent += {"all-gather": nbytes // members, "reduce-scatter": nbytes * members}.get(one.kind, nbytes)
    kinds = tuple(sorted({one.kind for one, _ in with_it}))
    return Share(len(with_it), len(own), kinds, sent, received)
