"""Changes of the JSON in an input that leave it JSON: bytes changed at random seldom do."""

from __future__ import annotations

import json
import re
from random import Random
from typing import Any

_OPENING = re.compile(rb"[{\[]")
_KEYS = ("a", "b", "sources", "$or", "$in", "$ne", "$gt", "metadata", "content", "id", "", "\ud800")
_DEEP, _DEEPER = json.loads("[" * 92 + "]" * 92), json.loads("[" * 120 + "]" * 120)
_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1.5, 2**53 + 1, 2**63, 10**400, 1e308, float("nan"), float("inf")),
    *("", "a", "x", "\0", "\ud800", "\ufffe", "1", "x" * 501, "2026-01-01T00:00:00Z", "own"),
    *([], {}, [[]], [1, "a"], {"a": 1}, {"$gt": 1}, {"type": "text", "text": "a"}),
    *(_DEEP, _DEEPER, 10**3900, 10**4200),
)


def changed_json(data: bytes, seed: int) -> bytes:
    """Change one member of an object or list in an input; the input itself if it has none."""
    chance = Random(seed)
    places = [found.start() for found in _OPENING.finditer(data)]
    if not places:
        return data
    begin = chance.choice(places)
    text = data[begin:].decode("latin-1")
    try:
        value, length = json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        return data
    changed = _changed(value, chance)
    return data[:begin] + json.dumps(changed).encode() + data[begin + length :]


def _changed(value: Any, chance: Random) -> Any:
    items = list(value.items()) if isinstance(value, dict) else list(enumerate(value))
    new = chance.choice(_VALUES)
    if not items or chance.random() < 0.1:
        items.append((chance.choice(_KEYS), new))
    else:
        place = chance.randrange(len(items))
        key, old = items[place]
        what = chance.randrange(6)
        if what == 0:
            del items[place]
        elif what == 1:
            items.append((chance.choice(_KEYS), old))
        elif what == 2:
            items[place] = chance.choice(_KEYS), old
        elif what == 3:
            items[place] = key, chance.choice(([old], [old, new], {chance.choice(_KEYS): old}))
        elif what == 4:
            items[place] = key, chance.choice(items)[1]
        else:
            items[place] = key, new
    return dict(items) if isinstance(value, dict) else [item for _, item in items]
