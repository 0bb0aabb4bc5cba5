"""Whether a module can be served in batches, and whether the program made of it gives what the module gives."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from forebay.contract.errors import InvalidInput

SIZES = (3, 1, 5)  # numbers of rows; the first is the one that is exported
_LOOSE = {torch.float16: 1e-2, torch.bfloat16: 5e-2}
_AGAIN, _PROGRAM, _ALONE = 1e-6, 1e-5, 1e-4  # how far results of about 1 may lie apart

Run = Callable[[Mapping[str, Tensor]], Any]  # the outputs of a batch


class Rows:
    """Rows like the example, on the module's device: the first is the example itself, others differ from it in their values."""

    def __init__(self, example: Mapping[str, Tensor], device: torch.device) -> None:
        self._example, self._device = example, device
        self.vary = True

    def batch(self, count: int = SIZES[0]) -> dict[str, Tensor]:
        """The first `count` rows, always the same: a tensor `(count, *shape)` for each input."""
        random = torch.Generator().manual_seed(0)
        made = {}
        for name, value in self._example.items():
            others = (self._other(value, random) if self.vary else value for _ in range(count - 1))
            made[name] = torch.stack([value, *others]).to(self._device)
        return made

    def _other(self, value: Tensor, random: torch.Generator) -> Tensor:
        if value.is_floating_point():  # of the same signs and about the same sizes
            noise = torch.rand(value.shape, generator=random).to(value.dtype)
            return value * (0.5 + noise) if value.any() else noise / 10
        if value.is_complex():
            return value
        order = torch.randperm(value.numel(), generator=random)
        other = value.flatten()[order]
        if other.numel() and other.equal(value.flatten()):  # towards 0, which an index may nearly always be
            other[-1] = ~other[-1] if other.dtype is torch.bool else other[-1] + (1 if other[-1] <= 0 else -1)
        return other.reshape(value.shape)


@torch.no_grad()
def check_module(run: Run, rows: Rows) -> None:
    """InvalidInput when a module's outputs cannot be those of a batch of samples, in which no sample knows of another."""
    made = _outputs(_first(run, rows), SIZES[0])
    again = _outputs(run(rows.batch()), SIZES[0])
    # Each of them alone: the first may be right by its place, as in a sum over all rows before.
    batches = ({name: value[i : i + 1] for name, value in rows.batch().items()} for i in range(SIZES[0]))
    alone = [_outputs(_run(run, batch, 1), 1) for batch in batches]
    for name, value in made.items():
        if (apart := _apart(value, again[name], _AGAIN)) is not None:
            raise InvalidInput(
                f"{name} of the module differs from call to call ({apart}), so it is drawn at random; take dropout and sampling "
                "out of its forward"
            )
        each = (_apart(value[i : i + 1], one[name], _ALONE) for i, one in enumerate(alone))
        if (apart := next(filter(None, each), None)) is not None:
            raise InvalidInput(
                f"{name} of the module for one sample depends on the other samples of its batch ({apart}), and workers batch "
                "whatever waits; compute each row from itself"
            )


@torch.no_grad()
def check_program(program: Run, module: Run, rows: Rows) -> None:
    """InvalidInput when the program gives anything else than the module for the example, or other rows and numbers of them."""
    for count in SIZES:
        batch = rows.batch(count)
        made, right = _outputs(_run(program, batch, count), count), _outputs(_run(module, batch, count), count)
        for name, value in right.items():
            if (apart := _apart(made[name], value, _PROGRAM)) is not None:
                raise InvalidInput(
                    f"{name} of the exported program is not the module's for {count} rows ({apart}), so nothing was registered; "
                    "take out of forward what depends on more than its inputs, such as counters and the number of rows"
                )


def _first(run: Run, rows: Rows) -> Any:
    """The outputs for the first batch; of copies of the example where the module takes no other values."""
    try:
        return run(rows.batch())
    except Exception:  # noqa: BLE001 - the module's own: values that are not the example's may be illegal
        rows.vary = False
        return _run(run, rows.batch(), SIZES[0])


def _run(run: Run, batch: Mapping[str, Tensor], count: int) -> Any:
    try:
        return run(batch)
    except Exception as error:
        given = ", ".join(f"{name} {str(t.dtype).removeprefix('torch.')} {list(t.shape)}" for name, t in batch.items())
        if "dtype" in str(error):
            hint = "give the example in the dtype of the module's weights, such as .astype('float32')"
        elif count == SIZES[0]:
            hint = "example= is one sample, without a batch dimension"
        else:
            hint = f"it took {SIZES[0]}, and any number of rows must do: use -1 or x.shape[0] in the place of a number of rows"
        raise InvalidInput(
            f"the module fails on {count} like the example ({given}): {type(error).__name__}: {error}; {hint}"
        ) from error


def _outputs(made: Any, count: int) -> dict[str, Tensor]:
    """The tensors by what to call them; InvalidInput for what has not one row for each sample."""
    outputs = dict(_leaves(made, "the output"))
    if not outputs:
        raise InvalidInput("the module gives no tensor; return a tensor, or a dict of tensors")
    for name, value in outputs.items():
        if not isinstance(value, Tensor):
            raise InvalidInput(f"{name} of the module is a {type(value).__name__}, not a tensor; return tensors only")
        if value.ndim == 0 or len(value) != count:
            raise InvalidInput(
                f"{name} of the module has the shape {list(value.shape)} for {count} sample{'s' * (count > 1)}; its first "
                f"dimension must be {count}: return one row for each sample"
            )
    return outputs


def _leaves(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict | list | tuple):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _leaves(item, f"{name} {key!r}")
    elif value is not None:
        yield name, value


def _apart(made: Tensor, right: Tensor, tolerance: float) -> str | None:
    """In what two results differ; None when they are as good as equal, NaN and infinity included."""
    if made.shape != right.shape or made.dtype != right.dtype:
        return f"{made.dtype} {list(made.shape)}, not {right.dtype} {list(right.shape)}"
    differs = (made != right) & ~((made != made) & (right != right))  # NaN is as NaN
    if not differs.any():
        return None
    if not right.is_floating_point() and not right.is_complex():
        return f"{int(differs.sum())} of {right.numel()} values"
    apart, size = (made - right)[differs].abs().to(torch.float64), right[differs].abs().to(torch.float64)
    greatest = right[right.isfinite()].abs().to(torch.float64).amax() if right.isfinite().any() else 0
    # Of each value its own size counts, and a little of the greatest, from which it may have been computed.
    allowed = max(tolerance, _LOOSE.get(right.dtype, 0)) * (min(1.0, float(greatest)) + size + greatest / 10)
    rounding = max(1e-6, 10 * torch.finfo(right.dtype).eps)  # of numbers of about 1, of which little may be left
    return None if (apart <= allowed.clamp(min=rounding)).all() else f"by up to {apart.max().item():.2g}"
