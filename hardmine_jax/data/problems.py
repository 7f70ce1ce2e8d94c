"""What is wrong with somebody's data: the error that stops, and the list of what was skipped."""

import dataclasses
from collections.abc import Iterable
from typing import NamedTuple

from hardmine_jax.errors import UserError

# Marks that join letters into one are part of some languages' words.
_JOINERS = "\u200c\u200d"
_MAX_MESSAGE = 2000
_MAX_NAME = 200
# Of one report: a reason that counts what it found may come in as many forms as there are records.
_MAX_REASONS = 12


class DataError(UserError):
    """The data cannot be used at all; one line that names the path and says what to do.

    >>> print(DataError("no category\\nof that name"))
    no category\\nof that name
    """

    def __init__(self, message: str):
        # Parts of it are a file's, and may be anything of any length.
        super().__init__(shorten(printable(message), _MAX_MESSAGE))


class UnreadableImage(UserError):
    """A record's image bytes are no whole JPEG or PNG, or the record itself is damaged."""


def printable(text: str) -> str:
    """The text, with escapes for what would break a line, a print or the order of the letters.

    Those are line breaks, control characters, marks of direction and halves of surrogate pairs.

    >>> print(printable("left\\nhip"), printable("\\u202egnp.exe"), printable("naïve $x$"))
    left\\nhip \\u202egnp.exe naïve $x$
    """
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() or one in _JOINERS else ascii(one)[1:-1] for one in text)


def shorten(text: str, limit: int) -> str:
    """The text, without its middle where it is longer.

    >>> shorten("abcdefghijklmnopqrst", 11)
    'abcd...qrst'
    """
    half = (limit - 3) // 2
    return text if len(text) <= limit else f"{text[:half]}...{text[-half:]}"


@dataclasses.dataclass(frozen=True)
class Skipped:
    """What was left out of a dataset, and why.

    Attributes:
      reasons: reason -> names of the records (images, or people in them) left out for it, in reading order.
      noted: what was odd -> names of the records that are there nevertheless.

    >>> skipped = Skipped({"image absent": ("im00001.jpg", "im00007.jpg")})
    >>> skipped.count, skipped.report()
    (2, 'skipped 2 records: 2 image absent (im00001.jpg, im00007.jpg)')
    >>> bool(skipped), bool(Skipped(noted={"odd": ("a.jpg",)})), bool(Skipped())
    (True, True, False)
    """

    reasons: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    noted: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)

    @property
    def count(self) -> int:
        """How many records were left out, for whatever reason."""
        return sum(len(names) for names in self.reasons.values())

    def __bool__(self) -> bool:
        """Whether there is anything to tell, also where nothing was left out."""
        return bool(self.reasons or self.noted)

    def report(self, *, num_names: int = 5) -> str:
        """One line: each reason with its count and its first `num_names` names, then what was noted."""
        parts = []
        for found, heading in ((self.reasons, "skipped"), (self.noted, "kept, but noted")):
            count = sum(len(names) for names in found.values())
            listed = [
                f"{len(names)} {reason} ({_first(names, num_names)})" for reason, names in found.items()
            ]
            if len(listed) > _MAX_REASONS:
                listed[_MAX_REASONS:] = [f"and {len(listed) - _MAX_REASONS} reasons more"]
            if count:
                parts.append(f"{heading} {count} record{'s' * (count > 1)}: {'; '.join(listed)}")
        return ". ".join(parts) or "skipped nothing"


def _first(names: tuple[str, ...], k: int) -> str:
    return ", ".join(shorten(name, _MAX_NAME) for name in names[:k]) + (", ..." if len(names) > k else "")


class Report(NamedTuple):
    """(reason, name) of what was left out, and of what was kept though odd, in reading order."""

    skipped: list[tuple[str, str]]
    noted: list[tuple[str, str]]

    def skip(self, reason: str, name: str) -> None:
        self.skipped.append((reason, name))

    def note(self, reason: str, name: str) -> None:
        self.noted.append((reason, name))

    def gathered(self) -> Skipped:
        return gather(self.skipped, self.noted)


def gather(problems: Iterable[tuple[str, str]], noted: Iterable[tuple[str, str]] = ()) -> Skipped:
    """(reason, name) pairs -> Skipped, reasons in order of their first appearance.

    >>> gather([("b", "1"), ("a", "2"), ("b", "3")]).reasons
    {'b': ('1', '3'), 'a': ('2',)}
    """
    return Skipped(_by_reason(problems), _by_reason(noted))


def _by_reason(problems: Iterable[tuple[str, str]]) -> dict[str, tuple[str, ...]]:
    reasons: dict[str, list[str]] = {}
    for reason, name in problems:
        # Names are the file's: a line break in one would break the report's line, half a surrogate the print.
        reasons.setdefault(reason, []).append(printable(name))
    return {reason: tuple(names) for reason, names in reasons.items()}
