"""An input iterator's position as JSON: dicts, lists, numbers, strings, and bytes (as base64)."""

import base64
from typing import Any

import numpy as np


def encode_json(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: encode_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [encode_json(item) for item in value]
    if isinstance(value, bytes):
        return {"__bytes__": base64.b64encode(value).decode()}
    return value.item() if isinstance(value, np.generic) else value


def decode_json(value: Any) -> Any:
    if isinstance(value, dict):
        if set(value) == {"__bytes__"}:
            return base64.b64decode(value["__bytes__"])
        return {key: decode_json(item) for key, item in value.items()}
    return [decode_json(item) for item in value] if isinstance(value, list) else value
