"""An exported program (.pt2) with its weights in fewer bits. Its graph makes numbers of them where it uses them, by plain
operators: nothing but torch is needed to run it, and its weights take up less memory too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, InputSpec, TensorArgument
from torch.fx import Node

from forebay.worker.packed_weights import gains, to_int8

aten = torch.ops.aten


def rewrite_program(program: ExportedProgram, change: Callable[[Tensor], Tensor]) -> None:
    """Give each matrix of weights other values, of the same dtype and shape."""
    for spec, _ in _matrices(program):
        program.state_dict[spec.target] = _kept(change(program.state_dict[spec.target].detach()))


def pack_program(program: ExportedProgram, method: str) -> None:
    """Keep each matrix of weights as bytes with a scale for each output channel (int8-weights), or in bfloat16."""
    packed: dict[str | None, tuple[Tensor, Tensor | None]] = {}  # two inputs may be the same weights
    for spec, holder in list(_matrices(program)):
        weights = program.state_dict[spec.target].detach()
        whole = to_int8(weights) if method == "int8-weights" else (weights.to(torch.bfloat16), None)
        _replace(program, spec, holder, *packed.setdefault(spec.target, whole))
    for target, (weights, _) in packed.items():
        program.state_dict[target] = _kept(weights)
    program.graph.lint()
    program.graph_module.recompile()


def _matrices(program: ExportedProgram) -> Iterator[tuple[InputSpec, Node]]:
    holders = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    for spec in program.graph_signature.input_specs:
        if spec.kind is InputKind.PARAMETER and gains(program.state_dict[spec.target]):
            yield spec, holders[spec.arg.name]


def _replace(program: ExportedProgram, spec: InputSpec, holder: Node, weights: Tensor, scale: Tensor | None) -> None:
    """Have everything that uses a program's input use what is made of its packed weights."""
    uses, like = list(holder.users), holder.meta["val"]
    holder.meta["val"] = like.fake_mode.from_tensor(weights, static_shapes=True)
    factor = None if scale is None else _add_input(program, spec, holder, scale.to(like.dtype), like.fake_mode)
    first = next(node for node in program.graph.nodes if node.op != "placeholder")
    if factor is not None:
        for use in [use for use in uses if use.target is aten.embedding.default and use.args[0] is holder]:
            uses.remove(use)  # only the rows that are looked up are made numbers
            _call(use, aten.embedding.default, *use.args, put=use)
            rows = _call(use.next, aten.embedding.default, factor, *use.args[1:])
            made = _numbers(use.next.next, use, rows, like.dtype)
            _use_instead(program, use, made)
    if uses:
        made = _numbers(first, holder, factor, like.dtype)
        for use in uses:
            use.replace_input_with(holder, made)


def _add_input(program: ExportedProgram, spec: InputSpec, holder: Node, value: Tensor, fake_mode: Any) -> Node:
    """The weights' scale as an input of the program beside them."""
    target = f"{spec.target}_scale"
    program.state_dict[target] = _kept(value)
    with program.graph.inserting_after(holder):
        added: Node = program.graph.placeholder(f"{holder.name}_scale")
    added.meta["val"] = fake_mode.from_tensor(value, static_shapes=True)
    specs = program.graph_signature.input_specs
    specs.insert(specs.index(spec) + 1, InputSpec(InputKind.PARAMETER, TensorArgument(name=added.name), target))
    return added


def _numbers(before: Node, whole: Node, factor: Node | None, dtype: torch.dtype) -> Node:
    """Packed values as numbers, by operators that stand before a node."""
    made = _call(before, aten._to_copy.default, whole, dtype=dtype)
    return made if factor is None else _call(before, aten.mul.Tensor, made, factor)


def _call(before: Node, operator: Any, *args: Any, put: Node | None = None, **kwargs: Any) -> Node:
    """A call before a node, with what it gives noted; `put` is a node that is there, whose inputs have changed."""
    with before.graph.inserting_before(before):
        node: Node = put if put is not None else before.graph.call_function(operator, args, kwargs)
    values = [arg.meta["val"] if isinstance(arg, Node) else arg for arg in args]
    with next(value.fake_mode for value in values if hasattr(value, "fake_mode")):
        node.meta["val"] = operator(*values, **kwargs)
    return node


def _use_instead(program: ExportedProgram, old: Node, new: Node) -> None:
    old.replace_all_uses_with(new, delete_user_cb=lambda user: user is not new.args[0])
    for spec in program.graph_signature.output_specs:
        if spec.arg.name == old.name:
            spec.arg.name = new.name


def _kept(values: Tensor) -> nn.Parameter:
    return nn.Parameter(values.contiguous(), requires_grad=False)
