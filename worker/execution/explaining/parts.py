"""Rows of texts, image files and categories explained by what the model gives once a part of them is taken out."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from forebay.contract.errors import InvalidInput
from forebay.contract.references import shown
from forebay.contract.requests.explain import EXPLANATION, MAX_FEATURES, OCCLUSION, ExplainRequest
from forebay.contract.signature import ARRAY_DTYPES, Field, Row
from forebay.worker.execution.explaining.scores import Scores, at

SIDE = 8  # patches along the longer side of an image, unless a window is given
_WORD = re.compile(r"\S+\s*")

Change = tuple[tuple[int, ...], Any]  # where the part stands among the attributions, and the input without it


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts of one input of a row, and what its attributions are made of: a shape, or for words the words."""

    changes: Sequence[Change]
    shape: tuple[int, ...] = ()
    words: Sequence[str] | None = None
    dtype: str = "float32"

    def told(self, values: Sequence[float]) -> Any:
        if self.words is not None:
            return [[word, value] for word, value in zip(self.words, values, strict=True)]
        made = np.zeros(self.shape, self.dtype)
        for (place, _), value in zip(self.changes, values, strict=True):
            made[place] = value
        return made


def explain_parts(
    rows: Sequence[Row],
    baseline: Row | None,
    fields: Mapping[str, Field],
    request: ExplainRequest,
    scores: Scores,
    run: Callable[[Sequence[Row]], tuple[str, Tensor]],
) -> list[Row]:
    """For each row attributions by input, and under EXPLANATION what they are of. `run` gives the output's values of rows."""
    output, values = run(rows)
    explained = scores.explained(output, values)
    told = []
    for i, row in enumerate(rows):
        named: dict[str, Any] = dict(row) if isinstance(row, Mapping) else {"input": row}
        held = baseline if isinstance(baseline, Mapping) or baseline is None else {"input": baseline}
        parts = {n: _parts(n, v, fields.get(n), None if held is None else held[n], request) for n, v in named.items()}
        changed = [named | {name: value} for name, part in parts.items() for _, value in part.changes]
        if len(changed) > MAX_FEATURES:
            raise InvalidInput(
                f"a row has {len(changed):,} parts, each of which costs a prediction; at most {MAX_FEATURES:,}"
            )
        without = iter(())
        if changed:
            _, made = run(changed if isinstance(row, Mapping) else [one["input"] for one in changed])
            left = explained.values[i] - at(made, explained.targets[i].expand(len(changed)))
            without = iter(left.tolist())
        found = {name: part.told([next(without) for _ in part.changes]) for name, part in parts.items()}
        told.append(found | {EXPLANATION: scores.told(explained, i, values.shape[1])})
    return told


def _parts(name: str, value: Any, field: Field | None, baseline: Any, request: ExplainRequest) -> Parts:
    if field is not None and field.cell and field.dtype == "str":
        return Parts([((), _other_category(field, baseline))])
    if isinstance(value, str):
        words = _WORD.findall(value)
        return Parts(list(_without(words, value)), words=[word.rstrip() for word in words])
    if isinstance(value, list) and all(isinstance(token, str) for token in value):
        return Parts([((i,), [*value[:i], *value[i + 1 :]]) for i in range(len(value))], words=value)
    if isinstance(value, bytes):
        return _patches(name, value, request)
    array = np.asarray(value)
    if array.dtype.kind not in "biuf" or (field is not None and field.dtype not in ARRAY_DTYPES):
        raise InvalidInput(
            f"input {shown(name)} holds neither numbers, text nor an image, which explain could take apart"
        )
    if request.method == OCCLUSION:
        raise InvalidInput("occlusion of numbers beside images or texts is not offered; use feature-ablation")
    held = np.zeros_like(array) if baseline is None else np.asarray(baseline, array.dtype)
    kind = "float64" if array.dtype == np.float64 else "float32"
    return Parts(
        [(place, _with(array, place, held[place])) for place in np.ndindex(array.shape)], array.shape, dtype=kind
    )


def _without(words: Sequence[str], text: str) -> Iterator[Change]:
    start = len(text) - sum(map(len, words))  # leading space
    for i, word in enumerate(words):
        yield (i,), text[:start] + text[start + len(word) :]
        start += len(word)


def _with(array: Any, place: tuple[int, ...], number: Any) -> Any:
    changed = array.copy()
    changed[place] = number
    return changed


def _other_category(field: Field, baseline: Any) -> str:
    if baseline is None and not field.allow_nan:
        raise InvalidInput(f"input {shown(field.name)} takes no gap: give as baseline a sample to hold it against")
    return baseline or ""


def _patches(name: str, data: bytes, request: ExplainRequest) -> Parts:
    """An image file without one patch of it after the other, which get its mean colour. Patches are of the image as it is seen;
    the files are turned as the given one, whether the model looks at that or not.
    """  # fmt: skip
    if request.method != OCCLUSION:
        raise InvalidInput(f"input {shown(name)} is an image file: use occlusion, whose window covers a part of it")
    from PIL import Image

    from forebay.datasets.decoding import decode_image, orientation_of, oriented_view

    pixels, exif = decode_image(data, oriented=False), orientation_of(data)
    height, width = oriented_view(pixels, exif).shape[:2]
    side = request.window or max(1, -(-max(height, width) // SIDE))
    shape = (-(-height // side), -(-width // side))
    if shape[0] * shape[1] > MAX_FEATURES:
        raise InvalidInput(
            f"a window of {side} makes {shape[0] * shape[1]:,} patches of {name}; at most {MAX_FEATURES:,}"
        )
    mean, changes = pixels.reshape(-1, pixels.shape[2]).mean(0).astype(np.uint8), list[Change]()
    for i, j in np.ndindex(shape):
        changed = pixels.copy()
        oriented_view(changed, exif)[i * side : (i + 1) * side, j * side : (j + 1) * side] = mean
        file = io.BytesIO()
        Image.fromarray(changed).save(file, "PNG", compress_level=1, exif=exif or b"")
        changes.append(((i, j), file.getvalue()))
    return Parts(changes, shape)
