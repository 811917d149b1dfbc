"""Whether injection is exact on a device, whichever memory a segment comes from."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from transformers import DynamicCache

from lag_integrations.engine.engine import Engine
from lag_integrations.kv.cache import LayerKV, new_cache, read_layers
from lag_integrations.kv.encode import encode
from lag_integrations.kv.fingerprint import fingerprint
from lag_integrations.kv.forward import Unread, read_next, read_together
from lag_integrations.kv.inject import inject
from lag_integrations.kv.mapped_file import sha256_hex
from lag_integrations.kv.segment import Segment, SegmentKey
from lag_integrations.kv.segment_file import dump_segment, load_segment

_SEGMENT, _REST, _ANSWER = 256, 32, 16
"""Tokens of a segment, of what is read behind it, and of what is written then."""
_STARTS = (0, 1, 997)
_FP32, _BF16 = 1e-2, 0.05
"""Largest difference of fp32 logits, and mean difference of others, in standard deviations."""
_CODECS = ("native", "bf16", "fp8", "int8", "int4")
_SMALL = 10**9
"""Parameters of a model up to which a copy of it on the CPU takes seconds."""


@dataclass(frozen=True)
class Check:
    """Something that has to be so.

    Attributes:
        name: What.
        found: What was found, for people.
        passed: Whether it is so.
    """

    name: str
    found: str
    passed: bool


def exactness(engine: Engine) -> Iterator[Check]:
    """Compare logits behind injected segments with those of an ordinary full pass.

    Differences are in standard deviations of the logits: of fp32 the largest, of other dtypes the
    mean one, for which the model itself allows as much as its own rounding at other positions.
    """
    with torch.no_grad():
        yield from _logits(engine)
        yield from _passes(engine)
        yield from _tiers(engine)
        yield from _codecs(engine)
    if sum(weight.numel() for weight in engine.model.parameters()) < _SMALL:
        on_cpu = copy.deepcopy(engine.model).to("cpu")
        template = engine.chat_template.source
        same = fingerprint(on_cpu, engine.tokenizer, template, engine.positions)
        yield Check(
            "fingerprint, as on a CPU",
            "the same" if same == engine.fingerprint else "another",
            same == engine.fingerprint,
        )


def _logits(engine: Engine) -> Iterator[Check]:
    ids, rest = _ids(engine), slice(_SEGMENT, _SEGMENT + _REST)
    full = _feed(engine, new_cache(), ids, 0)
    expected, scale = full[rest], full.std()
    exact = engine.model.dtype == torch.float32

    def distance(found: torch.Tensor) -> float:
        apart = (found - expected).abs() / scale
        return float(apart.max() if exact else apart.mean())

    own = distance(_feed(engine, new_cache(), ids, _STARTS[-1])[rest])
    most = _FP32 if exact else max(_BF16, 2 * own)
    yield Check("the model itself, at other positions", f"{own:.2g}", True)
    segment = _segment(engine)
    for start in _STARTS:
        logits = _feed(engine, _filled(engine, segment, start), ids[rest], start + _SEGMENT)
        apart = distance(logits)
        yield Check(f"logits behind a segment at {start}", f"{apart:.2g}", apart <= most)
    logits = _feed(engine, _filled(engine, segment, 7), ids[rest], _SEGMENT)
    apart = distance(logits)
    yield Check("noticed: a segment 7 tokens off", f"{apart:.2g}", apart > 2 * most)
    if exact:
        answers = [
            _greedy(engine, new_cache(), ids, 0),
            _greedy(engine, _filled(engine, segment, 0), ids[rest], _SEGMENT),
        ]
        same = sum(one == other for one, other in zip(*answers, strict=True))
        yield Check("tokens written behind it", f"{same} of {_ANSWER}", same == _ANSWER)


def _passes(engine: Engine) -> Iterator[Check]:
    """Sequences that share a pass get what each would get alone."""
    yield Check("sequences can share a pass", str(engine.can_batch), engine.can_batch)
    segment, ids = _segment(engine), _ids(engine)

    def rows() -> list[Unread]:
        return [
            Unread(ids[_SEGMENT:][:number], _filled(engine, segment, start))
            for start, number in ((0, 1), (0, _REST), (5, 3))
        ]

    alone = torch.cat([read_next(engine.model, row) for row in rows()]).float()
    together = torch.cat(read_together(engine.model, rows())).float()
    apart = float((alone - together).abs().mean() / alone.std())
    most = _FP32 if engine.model.dtype == torch.float32 else 2 * _BF16
    yield Check("logits of a shared pass", f"{apart:.2g}", apart <= most)


def _tiers(engine: Engine) -> Iterator[Check]:
    """A segment is injected the same, bit for bit, from whichever memory."""
    segment = _segment(engine)
    loaded = _stored(segment, "native")
    expected = read_layers(_filled(engine, segment, 5))
    for name, held in (("a file", loaded), ("memory", engine.encoder.stage(loaded))):
        found = read_layers(_filled(engine, held.to(engine.model.device), 5))
        yield _same_bits(f"injected from {name}", found, expected)


def _codecs(engine: Engine) -> Iterator[Check]:
    """Files say the same wherever they were packed."""
    segment = _segment(engine)
    on_cpu = segment.to(torch.device("cpu"))
    for codec in _CODECS:
        found, expected = _stored(segment, codec).slots, _stored(on_cpu, codec).slots
        yield _same_bits(f"packed as {codec}, as on a CPU", found, expected)


def _stored(segment: Segment, codec: str) -> Segment:
    """Return a segment as it comes back from its file."""
    key = SegmentKey("log", segment.fingerprint, "whole_trace", codec)
    data = dump_segment(segment, key)
    return load_segment(data, key, sha256_hex(data))


def _same_bits(name: str, found: Sequence[LayerKV], expected: Sequence[LayerKV]) -> Check:
    same = all(
        torch.equal(one, other)
        for mine, theirs in zip(found, expected, strict=True)
        for one, other in zip(mine, theirs, strict=True)
    )
    return Check(name, "the same bits" if same else "other bits", same)


def _ids(engine: Engine) -> list[int]:
    generator = torch.Generator().manual_seed(1)
    number = _SEGMENT + _REST
    return torch.randint(10, engine.vocabulary, (number,), generator=generator).tolist()


def _segment(engine: Engine) -> Segment:
    """Return a segment of all tokens that stand before the rest."""
    return encode(
        engine.model,
        engine.positions,
        _ids(engine)[:_SEGMENT],
        range(_SEGMENT),
        fingerprint=engine.fingerprint.id,
    )


def _filled(engine: Engine, segment: Segment, start: int) -> DynamicCache:
    cache = new_cache()
    inject(cache, engine.positions, [segment], start=start, fingerprint=engine.fingerprint.id)
    return cache


def _feed(engine: Engine, cache: DynamicCache, ids: list[int], position: int) -> torch.Tensor:
    """Read tokens behind what a cache holds, at a position; return logits ``[tokens, …]``, fp32."""
    device = engine.model.device
    output = engine.model(
        input_ids=torch.tensor([ids], device=device),
        position_ids=torch.arange(position, position + len(ids), device=device)[None],
        past_key_values=cache,
        use_cache=True,
    )
    logits: torch.Tensor = output.logits[0].float()
    return logits


def _greedy(engine: Engine, cache: DynamicCache, ids: list[int], position: int) -> list[int]:
    answer = [int(_feed(engine, cache, ids, position)[-1].argmax())]
    position += len(ids)
    while len(answer) < _ANSWER:
        answer.append(int(_feed(engine, cache, answer[-1:], position)[-1].argmax()))
        position += 1
    return answer
