"""Claims about what training steps' collectives move, and which measurements speak against them.

A claim is about each measurement by itself, or compares it with the first one of its program. What no
measurement is about is not claimed.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import collectives

VARIED = {"": "", "images": "2 x images", "k": "2 x k", "network": "other network"}
NOT_MINING = tuple(purpose for purpose in collectives.PURPOSES if purpose != "mining")
# All-reduces with a part in the metrics that a step may have, whatever its size: sums within the loss, means
# of the step; XLA merges some of them with the gradient.
MOST_METRICS = 4


class Measurement(NamedTuple):
    """A compiled step, in numbers of one device; as JSON between processes.

    Attributes:
      program: its name.
      variation: what is otherwise than asked for; "" for nothing.
      processes, devices: how many, the devices over all processes.
      parameters: bytes of parameters and batch statistics.
      equal: bytes of the gradient's arrays that equal another one, of which XLA moves one.
      k, units: of the mining over the global batch; 0 without it.
      step: median seconds; 0 where it did not run.
      compile: seconds, nothing cached.
      groups: how many devices take part in a collective, each number once.
      collectives: by kind, how many.
      shares: by purpose, `collectives.Share`.
    """

    program: str
    variation: str
    processes: int
    devices: int
    parameters: int
    equal: int
    k: int
    units: int
    step: float
    compile: float
    groups: list[int]
    collectives: dict[str, int]
    shares: dict[str, collectives.Share]


class Check(NamedTuple):
    """A claim about measurements, and what speaks against it; nothing where it holds."""

    claim: str
    against: list[str]


def from_json(content: dict[str, Any]) -> Measurement:
    shares = {
        name: collectives.Share(*share[:2], tuple(share[2]), *share[3:])
        for name, share in content["shares"].items()
    }
    return Measurement(**content | {"shares": shares})


def checks(found: list[Measurement]) -> list[Check]:
    """Every claim about the measurements, of which some may be about none."""
    several = [one for one in found if one.devices > 1]
    plain = [one for one in several if not one.variation]
    alone = [one for one in several if not _number(one, "batch norm")]
    beside = [one for one in several if _number(one, "batch norm")]
    networks = [one for one in several if one.variation == "network"]
    made = [
        claim("every collective is of a known purpose", found, lambda one: not _number(one, "unclassified")),
        claim("all devices take part in each; one device reduces by itself", found, _is_of_all),
        claim(
            "one gradient reduction: an all-reduce of all gradients and batch statistics, equal arrays once",
            alone,
            lambda one: _reduces_gradient(one) and _number(one, "gradient") == 1,
        ),
        claim(
            "with synchronised batch norm: the same, but that some of it rides on batch norm's all-reduces",
            beside,
            _reduces_gradient,
        ),
        claim(
            "mining is one all-gather of integers, 4 min(k, N) bytes from each device; none within an image",
            several,
            _mines_in_k,
        ),
        claim(f"metrics have a part in at most {MOST_METRICS} all-reduces", several, _describes_briefly),
        same(
            "on any number of devices and processes here: the same sent for everything",
            plain,
            collectives.PURPOSES,
        ),
        same("twice the images: the same sent for everything", several, collectives.PURPOSES, "images"),
        same("twice the k: the same sent for all but mining", several, NOT_MINING, "k"),
        same("another network: the same sent for metrics", several, ("metrics",), "network"),
        claim(
            "another network: more sent for gradient",
            networks,
            lambda one: all(
                one.shares["gradient"].sent > other.shares["gradient"].sent
                for other in of_program(plain, one.program)
            ),
        ),
    ]
    return [check for check in made if check is not None]


def claim(text: str, ones, holds: Callable[[Measurement], bool]) -> Check | None:
    """A claim about each one by itself; None where there is none."""
    ones = list(ones)
    return Check(text, [_label(one) for one in ones if not holds(one)]) if ones else None


def same(text: str, ones: list[Measurement], purposes: tuple[str, ...], variation: str = "") -> Check | None:
    """A claim that bytes and number of collectives are those of the program's first measurement.

    Args:
      purposes: of which.
      variation: which measurements are compared with the first one.
    """
    compared, against = 0, []
    for one in ones:
        first = next((other for other in of_program(ones, one.program) if not other.variation), one)
        if one is first or one.variation != variation:
            continue
        # A gather gives more on more devices; what each sends is the same.
        pairs = [(one.shares[purpose], first.shares[purpose]) for purpose in purposes]
        compared += 1
        if any((a.collectives, a.sent) != (b.collectives, b.sent) for a, b in pairs):
            against.append(_label(one))
    return Check(text, against) if compared else None


def of_program(ones: list[Measurement], program: str) -> list[Measurement]:
    return [one for one in ones if one.program == program]


def _number(one: Measurement, purpose: str) -> int:
    return one.shares[purpose].collectives


def _is_of_all(one: Measurement) -> bool:
    return all(group == one.devices for group in one.groups)


def _reduces_gradient(one: Measurement) -> bool:
    share = one.shares["gradient"]
    return share.own == 1 and share.sent == one.parameters - one.equal and share.kinds == ("all-reduce",)


def _describes_briefly(one: Measurement) -> bool:
    return one.shares["metrics"].kinds == ("all-reduce",) and _number(one, "metrics") <= MOST_METRICS


def _mines_in_k(one: Measurement) -> bool:
    share, sent = one.shares["mining"], 4 * min(one.k, one.units)
    wanted = collectives.Share(1, 1, ("all-gather",), sent, sent * one.devices)
    return share == (wanted if one.units else collectives.Share(0, 0, (), 0, 0))


def _label(one: Measurement) -> str:
    return f"{one.program} {VARIED[one.variation]}".strip() + f", {one.processes} x {one.devices} devices"
