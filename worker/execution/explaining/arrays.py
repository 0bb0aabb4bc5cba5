"""Rows of numbers explained by Captum: by the gradients of a network, or by what a model gives once numbers are covered."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor

from forebay.contract.errors import InvalidInput
from forebay.contract.requests.explain import EXPLANATION, GRADIENTS, MAX_FEATURES, OCCLUSION, SALIENCY, ExplainRequest
from forebay.contract.signature import Row
from forebay.worker.execution.explaining.scores import Scores, at
from forebay.worker.runtimes.tensors import Differentiable

COLORS = 4  # at most so many channels has an image


def explain_arrays(
    rows: Differentiable, baseline: Sequence[Tensor] | None, request: ExplainRequest, scores: Scores, at_once: int
) -> list[Row]:
    """For each row attributions by input, and under EXPLANATION what they are of; at most `at_once` rows go forward together."""
    count, inputs = len(rows.inputs[0]), rows.inputs
    held = tuple(torch.zeros_like(t[:1]) for t in inputs) if baseline is None else tuple(baseline)
    if not all(bool(torch.isfinite(t).all()) for t in inputs):
        raise InvalidInput("the input holds a number that is not finite, from which no baseline has a difference")
    with _gradients(rows.recurrent):
        with torch.no_grad():
            output, values = scores.of_tensors(rows.forward(*inputs, *rows.fixed))
        explained = scores.explained(output, values)

        def score(*args: Tensor) -> Tensor:
            *tensors, targets = args
            return at(scores.of_tensors(rows.forward(*tensors))[1], targets)

        further = (*rows.fixed, explained.targets)
        if request.by_gradient:
            made = _by_gradient(score, inputs, held, further, request, at_once)
        else:
            with torch.no_grad():
                made = _by_covering(score, rows, held, further, request, at_once // count)
        told = [scores.told(explained, i, values.shape[1]) for i in range(count)]
        if request.method == GRADIENTS:
            with torch.no_grad():
                start = score(*(t.expand_as(x) for t, x in zip(held, inputs, strict=True)), *further)
            sums = torch.stack([part.reshape(count, -1).double().sum(1) for part in made]).sum(0)
            for i, about in enumerate(told):
                about |= _convergence(float(start[i]), float(explained.values[i]), float(sums[i]), request)
    arrays = [part.detach().cpu().numpy() for part in made]
    if not all(np.isfinite(array).all() for array in arrays):
        raise InvalidInput(f"{request.method} gives a number that is not finite here; use feature-ablation")
    told_rows = rows.told(arrays, request.method == SALIENCY)
    return [row | {EXPLANATION: about} for row, about in zip(told_rows, told, strict=True)]


def _gradients(recurrent: bool) -> AbstractContextManager[Any]:
    return torch.backends.cudnn.flags(enabled=False) if recurrent else nullcontext()


def _by_gradient(
    score: Any, inputs: tuple[Tensor, ...], held: tuple[Tensor, ...], further: tuple[Tensor, ...], request: ExplainRequest,
    at_once: int,
) -> tuple[Tensor, ...]:  # fmt: skip
    from captum.attr import IntegratedGradients, Saliency

    found = Saliency(score) if request.method == SALIENCY else IntegratedGradients(score)
    found.gradient_func = _slopes
    try:
        if request.method == SALIENCY:
            leaves = tuple(t.detach().clone().requires_grad_() for t in inputs)
            return tuple(found.attribute(leaves, additional_forward_args=further))
        return tuple(
            found.attribute(
                inputs, held, additional_forward_args=further, n_steps=request.steps, internal_batch_size=at_once
            )
        )
    except RuntimeError as error:
        if "does not require grad" in str(error) or "not have been used in the graph" in str(error):
            raise InvalidInput(
                f"{request.method}: the output has no gradient by the inputs ({error}); use feature-ablation"
            ) from error
        raise


def _slopes(
    forward_fn: Any, inputs: tuple[Tensor, ...], target_ind: None, additional_forward_args: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    """Gradients of all rows at once. Captum's own asks for each row's apart, and takes longer for that than small networks."""
    del target_ind
    with torch.enable_grad():
        return torch.autograd.grad(forward_fn(*inputs, *additional_forward_args).sum(), inputs)


def _by_covering(
    score: Any, rows: Differentiable, held: tuple[Tensor, ...], further: tuple[Tensor, ...], request: ExplainRequest,
    at_once: int,
) -> tuple[Tensor, ...]:  # fmt: skip
    from captum.attr import FeatureAblation, Occlusion

    together = {"additional_forward_args": further, "perturbations_per_eval": max(1, at_once)}
    if request.method == OCCLUSION:
        windows = tuple(_window(t.shape[1:], request.window) for t in rows.inputs)
        pieces = (
            -(-n // w) for t, ws in zip(rows.inputs, windows, strict=True) for n, w in zip(t.shape[1:], ws, strict=True)
        )
        _check_count(int(np.prod(list(pieces))), "windows", "a larger window")
        return tuple(Occlusion(score).attribute(rows.inputs, windows, windows, held, **together))
    if rows.groups is None:
        _check_count(sum(t[0].numel() for t in rows.inputs), "numbers", "occlusion, or integrated-gradients")
        return tuple(FeatureAblation(score).attribute(rows.inputs, held, **together))
    groups = torch.tensor([rows.groups], device=rows.inputs[0].device)
    made = FeatureAblation(score).attribute(rows.inputs, held, feature_mask=(groups,), **together)
    first = torch.ones_like(groups, dtype=torch.bool)
    first[:, 1:] = groups[:, 1:] != groups[:, :-1]
    return (made[0] * first,)  # each number of a group has what the group adds


def _check_count(count: int, what: str, instead: str) -> None:
    if count > MAX_FEATURES:
        raise InvalidInput(
            f"a row has {count:,} {what}, each of which costs a prediction; at most {MAX_FEATURES:,}: use {instead}"
        )


def _window(shape: Sequence[int], side: int | None) -> tuple[int, ...]:
    """What covers all channels of an image, and `side` of every other dimension."""
    channels = None
    if len(shape) == 3:
        channels = 0 if shape[0] <= COLORS else 2 if shape[2] <= COLORS else None
    longest = max(n for i, n in enumerate(shape) if i != channels)
    side = side or max(1, longest // 8)
    return tuple(n if i == channels else min(n, side) for i, n in enumerate(shape))


def _convergence(start: float, end: float, total: float, request: ExplainRequest) -> dict[str, Any]:
    """How far the sum of the attributions is from the difference that they are to make up."""
    difference = end - start
    delta = total - difference
    allowed = request.tolerance * abs(difference) + 1e-5 * max(1.0, abs(start), abs(end))  # the rounding of float32
    warning = (
        f"the attributions sum to {total:.4g}, but the scores of input and baseline differ by {difference:.4g}: "
        f"take more steps than {request.steps}"
    )
    converged = abs(delta) <= allowed
    return {
        "baseline_score": start, "delta": delta, "converged": converged, "warning": None if converged else warning,
    }  # fmt: skip
