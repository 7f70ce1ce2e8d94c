"""What batches are made of: records by position."""

from typing import Any, Protocol


class Records(Protocol):
    """Random access to records, dictionaries as a wing's `records.py` describes them; lists are that too."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> dict[str, Any]:
        """Raises UnreadableImage where the picture is damaged."""
