"""A torch.nn.Module, or an ExportedProgram, as a .pt2 file with a free batch dimension; a state dict as a .safetensors file.

What is written is compared with the module before anybody has it: on the example, on other rows, and on other numbers of rows.
"""

from __future__ import annotations

import inspect
import logging
import re
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from forebay.contract.errors import InvalidInput
from forebay.export.comparing import Rows, check_module, check_program
from forebay.export.inputs import call_of, keywords_of, parameters_of, tensors_of

_PYTORCH, _PYTHON, _OURS = (str(Path(file).parent) for file in (torch.__file__, inspect.__file__, __file__))
_INSTEAD = "or serve its code as it is: save its weights as .safetensors, and name a factory that builds it"
_SAVED_SPACE = "torch.fx.experimental.symbolic_shapes"  # which logs where a dimension becomes a fixed number

Free = Mapping[
    str, tuple[int, ...]
]  # of each input, or the only one (""), the dimensions of one sample that are free too


def export_program(program: ExportedProgram, path: Path) -> None:
    """Write a program that was exported already; contract.pt2 judges the file, as any other."""
    torch.export.save(program, path)


def export_module(module: nn.Module, example: Any, free: Free, path: Path) -> None:
    """Write the module, which takes samples like `example`: an array, tensor or number, or a dict of those by input.

    InvalidInput, with what to change: in training mode, when its forward cannot be exported or has no free batch dimension, when
    its results differ from call to call or depend on other rows of the batch, when the file gives other results.
    """
    module = _unwrapped(module)
    if isinstance(module, torch.jit.ScriptModule):
        raise InvalidInput(
            f"a {type(module).__name__} cannot be exported: take its weights into the Python module that it was made of, and "
            "register that\n    module.load_state_dict(scripted.state_dict())\n"
            '    client.models.register("net", module.eval(), example=sample)'
        )
    _refuse_training_mode(module)
    adapted = _Adapted(module, example)
    rows = Rows(adapted.example, _device(module))
    before = _state(module)
    try:
        check_module(adapted.run, rows)
    except InvalidInput as error:
        if adapted.call != "dict":
            raise
        only = next(p.name for p in parameters_of(module) if p.default is p.empty)
        raise InvalidInput(f"{error}; the whole dict went to forward's {only!r}, since no key is its name") from error
    if (changed := next((name for name, at in _state(module).items() if before.get(name) != at), None)) is not None:
        raise InvalidInput(f"forward writes to {changed!r}, so samples would affect each other; take that out of it")
    program, positional = _exported(adapted, rows.batch(), free)
    torch.export.save(program, path)
    loaded = torch.export.load(path).module()

    def run(batch: Mapping[str, Tensor]) -> Any:
        by_name = {name: value for name, value in batch.items() if name not in positional}
        return loaded(*[batch[name] for name in positional], **by_name)

    check_program(run, adapted.run, rows)


def write_weights(weights: Mapping[str, Tensor], path: Path) -> None:
    """Write the tensors; those that share memory are written for each name, since a file of safetensors has no other way."""
    seen: set[int] = set()
    made: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        plain = tensor.detach().cpu().contiguous()
        memory = plain.untyped_storage().data_ptr()
        made[name] = plain.clone() if memory in seen else plain
        seen.add(memory)
    save_file(made, path)


class _Adapted(nn.Module):
    """A module whose forward takes its inputs by name, and gives tensors, or plain tuples, lists and dicts of them."""

    def __init__(self, module: nn.Module, example: Any) -> None:
        super().__init__()
        self.module, self.call = module, call_of(module, example)
        self.example = tensors_of(module, example, self.call)
        self.keywords = keywords_of(module, self.example, self.call)
        self.training = module.training
        self.forward = self._forward()

    def run(self, inputs: Mapping[str, Tensor]) -> Any:
        """Its outputs for a batch."""
        return _plain(self.raw(inputs))

    def raw(self, inputs: Mapping[str, Tensor]) -> Any:
        """What the module itself gives."""
        if self.call == "dict":
            return self.module(dict(inputs))
        by_name = {name: value for name, value in inputs.items() if name in self.keywords}
        return self.module(*(value for name, value in inputs.items() if name not in by_name), **by_name)

    def _forward(self) -> Any:
        def forward(*inputs: Tensor) -> Any:
            return self.run(dict(zip(self.example, inputs, strict=True)))

        # torch.export calls inputs as the signature does.
        by_name = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in self.example]
        forward.__signature__ = inspect.Signature(by_name)  # type: ignore[attr-defined]
        return forward


def _plain(value: Any) -> Any:
    """A module's output without the classes that libraries give it, and without what is None."""
    if hasattr(value, "_asdict"):  # a named tuple
        value = value._asdict()
    elif hasattr(value, "__dataclass_fields__") and not isinstance(value, Mapping):
        value = {name: getattr(value, name) for name in value.__dataclass_fields__}
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items() if item is not None}
    return type(value)(map(_plain, value)) if type(value) in (list, tuple) else value


def _unwrapped(module: nn.Module) -> nn.Module:
    """The module itself, out of what trains it in parallel or compiles it."""
    if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
        return _unwrapped(module.module)
    inner = getattr(module, "_orig_mod", None)
    return _unwrapped(inner) if isinstance(inner, nn.Module) else module


def _refuse_training_mode(module: nn.Module) -> None:
    """InvalidInput when parts are in training mode that give other results then: those whose code looks at `training`."""
    parts = [(name, part) for name, part in module.named_modules() if part.training and _looks_at_mode(type(part))]
    if parts:
        named = ", ".join(f"{name or 'itself'} ({type(part).__name__})" for name, part in parts[:5])
        more = f" and {len(parts) - 5} more" if len(parts) > 5 else ""
        raise InvalidInput(
            f"the {type(module).__name__} is in training mode, in which these give other results: {named}{more}; "
            "call module.eval() first"
        )


def _looks_at_mode(kind: type[nn.Module]) -> bool:
    own = kind.__mro__[: kind.__mro__.index(nn.Module)]
    functions = (value for cls in own for value in vars(cls).values() if hasattr(value, "__code__"))
    return any("training" in function.__code__.co_names for function in functions)


def _device(module: nn.Module) -> torch.device:
    devices = {tensor.device for tensor in (*module.parameters(), *module.buffers())}
    if len(devices) > 1 or any(device.type == "meta" for device in devices):
        raise InvalidInput(
            f"the module lies on {', '.join(sorted(map(str, devices)))}; bring all of it to one: module.to('cpu')"
        )
    return next(iter(devices), torch.device("cpu"))


def _state(module: nn.Module) -> dict[str, tuple[int, int]]:
    """What changes with each write to a parameter or buffer."""
    named = (*module.named_parameters(), *module.named_buffers())
    return {name: (id(tensor), tensor._version) for name, tensor in named}


def _exported(adapted: _Adapted, batch: dict[str, Tensor], free: Free) -> tuple[ExportedProgram, list[str]]:
    """The program, and what it takes by position. It is the module's own where that takes and gives nothing but tensors."""
    rows, module = Dim("batch"), adapted.module
    only = free.get("", ())
    for name, dimensions in ((name, free.get(name, only)) for name in batch):
        if any(batch[name].shape[i + 1] < 2 for i in dimensions):
            raise InvalidInput(
                f"example: a dimension of {name!r} that is declared free (-1) has the length 1; give a longer one"
            )
    shapes = {name: {0: rows} | {i + 1: Dim.DYNAMIC for i in free.get(name, only)} for name in batch}
    with torch.no_grad():
        raw = adapted.raw(batch)
    own = parameters_of(module)[: len(batch)]
    direct = adapted.call == "names" and type(_plain(raw)) is type(raw) and [p.name for p in own] == [*batch]
    positional = [*batch] if not direct else [p.name for p in own if p.kind is not p.KEYWORD_ONLY]
    by_name = {name: tensor for name, tensor in batch.items() if name not in positional}
    arguments = tuple(batch[name] for name in positional)
    with _fixed_places() as places:
        try:
            exporting = module if direct else adapted
            return torch.export.export(exporting, arguments, by_name, dynamic_shapes=shapes), positional
        except Exception as error:  # torch.export raises whatever its layers, and the module, raise
            raise InvalidInput(
                f"{type(module).__name__}: {_why(error, places, any(free.values()))}; {_INSTEAD}"
            ) from error


def _why(error: Exception, places: list[str], more_free: bool) -> str:
    told, place = str(error).strip(), _own_line(traceback.extract_tb(error.__traceback__))
    first = told.splitlines()[0].removesuffix(".") if told else type(error).__name__
    if "Constraints violated" in told or "pecializ" in told:
        where = f", because of {places[0]}" if places else f": {first[:200]}"
        if more_free and re.search(r"(?<!')\bbatch\b(?!')", first) is None:
            return f"a dimension that inputs= declares free (-1) cannot be free{where}; declare its length"
        return (
            f"its batch dimension cannot be free{where}; use -1 or x.shape[0] in the place of a number of rows, and work on "
            "whole tensors in the place of a loop over rows"
        )
    if "data-dependent" in told:
        return f"its forward decides by the values of a tensor, which a program cannot{_at(place)}; use torch.where"
    return f"torch.export cannot take its forward ({type(error).__name__}: {first[:300]}){_at(place)}"


def _at(place: str | None) -> str:
    return f", at {place}" if place else ""


@contextmanager
def _fixed_places() -> Iterator[list[str]]:
    """The lines of the user's code at which torch takes a dimension for a fixed number, while it exports."""
    places: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            text = record.getMessage()
            if "[guard added]" in text and ("Eq(" in text or "Ne(" in text):
                place = _own_line(traceback.extract_stack())
                if place is not None and place not in places:
                    places.append(place)

    log = logging.getLogger(_SAVED_SPACE)
    before = log.level, log.propagate, log.handlers
    log.handlers, log.propagate = [Listener()], False
    log.setLevel(logging.INFO)
    try:
        yield places
    finally:
        log.setLevel(before[0])
        log.propagate, log.handlers = before[1], before[2]


def _own_line(stack: traceback.StackSummary) -> str | None:
    """The innermost line that is neither torch's nor Python's nor ours, of those that torch has called."""
    torch_at = next((i for i, frame in enumerate(stack) if frame.filename.startswith(_PYTORCH)), len(stack))
    for frame in reversed(stack[torch_at:]):
        of_python = frame.filename.startswith(_PYTHON) and "-packages" not in frame.filename
        if frame.line and not of_python and not frame.filename.startswith((_PYTORCH, _OURS, "<")):
            return f"{Path(frame.filename).name}:{frame.lineno} `{frame.line}`"
    return None
