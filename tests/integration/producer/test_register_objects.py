"""Modules, exported programs and state dicts become versions that give the library's own results, or lead to one."""

import dataclasses
from collections import namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from forebay import Client, InvalidInput, ModelVersion, Settings
from forebay.contract.signature import Row
from forebay.storage.ledger.connection import Ledger
from forebay.worker.runtimes import get_runtime

X = np.linspace(-1, 1, 4, dtype=np.float32)
HERE = __name__.rpartition(".")[2]
Pair = namedtuple("Pair", "left right")


@pytest.fixture
def client(sqlite_ledger: Ledger, tmp_path: Path) -> Iterator[Client]:
    given = {"HOME": str(tmp_path / "home"), "DATABASE": sqlite_ledger.url, "BROKER": "redis://127.0.0.1:1/0"}
    with Client(Settings.load({f"FOREBAY_{name}": value for name, value in given.items()})) as client:
        yield client


def served(client: Client, model: ModelVersion, *inputs: Any) -> list[Row]:
    """What a worker gives for these samples, batched."""
    path = client.session.blobs.fetch(model.artifact, client.settings.home / "fetched")
    loaded = get_runtime(model.runtime, [__name__]).load(path, "cpu", model)
    rows = loaded.predict([model.signature.row(given) for given in inputs])
    return [model.signature.output(row) for row in rows]


@dataclasses.dataclass
class Output:
    logits: torch.Tensor
    loss: torch.Tensor | None = None


class Forward(nn.Module):
    """A module with a layer, whose forward is what it is given."""

    def __init__(self, forward: Callable[..., Any]) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.own = forward


class OfOne(Forward):
    def forward(self, x):
        return self.own(self, x)


class OfTwo(Forward):
    def forward(self, x, *, ids, scale=None):
        return self.own(self, x, ids, scale)


class OfDict(Forward):
    def forward(self, batch):
        return self.own(self, batch["x"])


class OfAny(Forward):
    def forward(self, *given):
        return self.own(self, given[0])


class ByPlace(Forward):
    def forward(self, left, right=None, third=None, /, *, scale):
        return self.own(self, left, right, third, scale)


def two(net: OfTwo, x: torch.Tensor, ids: torch.Tensor, scale: torch.Tensor | None) -> dict[str, torch.Tensor]:
    logits = net.layer(x)
    return {"logits": logits if scale is None else logits * scale[:, None], "total": ids.sum(-1)}


IMAGES = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Dropout(), nn.Flatten(), nn.Linear(72, 3))

ENCODER = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)

# What is given, one sample of it, the names of its inputs and of its outputs.
TAKEN = {
    "a layer": (nn.Linear(4, 3), X, ["input"], ["output"]),
    "in training mode, which it does not look at": (nn.Sequential(nn.Linear(4, 3), nn.ReLU()), X, ["input"], ["output"]),
    "images": (IMAGES.eval(), np.ones((1, 8, 8), np.float32), ["input"], ["output"]),
    "a sequence": (ENCODER.eval(), np.ones((5, 4), np.float32), ["src"], ["output"]),
    "two inputs, two outputs": (OfTwo(two), {"x": X, "ids": np.arange(5)}, ["x", "ids"], ["logits", "total"]),
    "one that may be left out": (
        OfTwo(two), {"scale": 2.0, "ids": np.arange(5), "x": X}, ["x", "ids", "scale"], ["logits", "total"],
    ),
    "a tuple": (OfOne(lambda net, x: (net.layer(x), x.argmax(1))), {"x": X}, ["x"], ["output_0", "output_1"]),
    "a named tuple": (OfOne(lambda net, x: Pair(x, net.layer(x))), X, ["x"], ["left", "right"]),
    "a library's own output": (OfOne(lambda net, x: Output(net.layer(x))), X, ["x"], ["logits"]),
    "a dict as its only input": (OfDict(lambda net, x: net.layer(x)), {"x": X, "y": 1.0}, ["x", "y"], ["output"]),
    "any inputs": (OfAny(lambda net, x: net.layer(x)), X, ["x"], ["output"]),
    "a tensor as example": (nn.Linear(4, 3), torch.from_numpy(X), ["input"], ["output"]),
    "a list as example": (nn.Linear(4, 3), X.tolist(), ["input"], ["output"]),
    "in parallel": (nn.DataParallel(nn.Linear(4, 3)), X, ["input"], ["output"]),
    "compiled": (torch.compile(nn.Linear(4, 3), backend="eager"), X, ["input"], ["output"]),
}  # fmt: skip


def rows_like(example: Any, count: int) -> list[Any]:
    generator = np.random.default_rng(7)

    def other(value: Any) -> Any:
        array = np.asarray(value)
        return (array + generator.normal(size=array.shape)).astype(array.dtype) if array.dtype.kind == "f" else array

    return [
        {k: other(v) for k, v in example.items()} if isinstance(example, dict) else other(example) for _ in range(count)
    ]


def own(module: nn.Module, rows: list[Any]) -> list[Any]:
    """What the module itself gives for these samples, each alone."""
    made = []
    for row in rows:
        given = {
            k: torch.tensor(np.asarray(v, np.float32 if np.asarray(v).dtype.kind == "f" else None))[None]
            for k, v in (row.items() if isinstance(row, dict) else [("", row)])
        }
        with torch.inference_mode():
            if isinstance(module, OfDict):
                output = module(given)
            else:
                output = module(*given.values()) if len(given) == 1 else module(**given)
        if dataclasses.is_dataclass(output):
            output = output.logits
        parts = output.values() if isinstance(output, dict) else output if isinstance(output, tuple) else [output]
        made.append([part[0].numpy() for part in parts])
    return made


@pytest.mark.parametrize("name", TAKEN)
def test_a_module_gives_its_own_results_in_batches_of_any_size(client: Client, name: str) -> None:
    module, example, inputs, outputs = TAKEN[name]
    model = client.models.register("net", module, example=example, alias="champion")
    assert (model.ref, model.runtime, model.aliases, model.has_example) == (
        "net/1",
        "torch-export",
        ("champion",),
        True,
    )
    assert [field.name for field in model.signature.inputs or ()] == inputs
    assert [field.name for field in model.signature.outputs or ()] == outputs
    for count in (1, 4):
        rows = rows_like(example, count)
        for made, right in zip(served(client, model, *rows), own(module, rows), strict=True):
            parts = list(made.values()) if isinstance(made, dict) else [made]
            for part, expected in zip(parts, right, strict=True):
                np.testing.assert_allclose(part, expected, rtol=1e-5, atol=1e-5)


def test_dimensions_that_inputs_declare_free_are_free(client: Client) -> None:
    class Mean(nn.Module):
        def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            return (ids * mask).sum(1) / mask.sum(1)

    free = {"ids": {"dtype": "int64", "shape": [-1]}, "mask": {"dtype": "int64", "shape": [-1]}}
    model = client.models.register("mean", Mean(), example={"ids": [1, 2, 3], "mask": [1, 1, 0]}, inputs=free)
    assert model.signature.inputs_json() == free
    assert served(client, model, {"ids": [2, 4, 6, 8, 9], "mask": [1, 1, 1, 1, 0]}) == [np.float32(5)]
    one = client.models.register("one", OfOne(lambda net, x: x.sum(1)), example=[[1.0], [2.0]], inputs={
        "image": {"dtype": "float32", "shape": [-1, 1]},
    })  # fmt: skip
    assert served(client, one, np.ones((6, 1), np.float32)) == [np.full(1, 6, np.float32)]


class Fixed(nn.Module):
    def forward(self, x):
        rows = [row * 2 for row in x.unbind()]
        return torch.stack(rows)


class Deciding(nn.Module):
    def forward(self, x):
        if x.sum() > 1e9:
            return -x
        return x


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        self.seen += 1
        return x


class Otherwise(nn.Module):
    def forward(self, x):
        return 2 * x if torch.compiler.is_exporting() else x


TRAINING = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Dropout(0.1))
REFUSED = {
    "training mode": (TRAINING, X, r"training mode.*1 \(BatchNorm1d\), 2 \(Dropout\); call module.eval\(\) first"),
    "dropout that is always on": (OfOne(lambda net, x: functional.dropout(x)), X, "differs from call to call.*take dropout"),
    "a part left in training mode": (nn.Sequential(nn.Linear(4, 4), nn.Dropout()).eval(), X, r"training mode.*1 \(Dropout\)"),
    "another result when exported": (Otherwise(), X, "exported program is not the module's for 3 rows.*nothing was registered"),
    "samples that know of each other": (OfOne(lambda net, x: x - x.mean(0)), X, "depends on the other samples of its batch"),
    "samples that know of those before": (OfOne(lambda net, x: x.cumsum(0)), X, "depends on the other samples of its batch"),
    "small samples that know of each other": (OfOne(lambda net, x: 1e-4 * (x - x.mean(0))), X, "depends on the other samples"),
    "numbers that know of each other": (OfOne(lambda net, i: i - i.max()), np.int64(3), "depends on the other samples"),
    "masks that know of each other": (OfOne(lambda net, m: m == m.all(0)), np.ones(3, bool), "depends on the other samples"),
    "a loop over rows": (Fixed(), X, r"batch dimension cannot be free, because of test_register_objects.py:\d+ `.*unbind"),
    "a decision by values": (Deciding(), X, r"decides by the values.*test_register_objects.py:\d+ `if x.sum\(\) > 1e9:`"),
    "NumPy within": (OfOne(lambda net, x: torch.tensor(x.numpy())), X, r"cannot take its forward.*objects.py:\d+"),
    "state that changes": (Counting(), X, "forward writes to 'seen'"),
    "a free length that is fixed": (OfOne(lambda net, x: x.reshape(-1, 4).sum(1)), X, "-1. cannot be free.*declare its length"),
    "a free length of 1": (OfOne(lambda net, x: x.sum(1)), X[:1], "give a longer one"),
    "one number for all": (OfOne(lambda net, x: {"y": x, "loss": x.mean()}), X, r"output 'loss'.*shape \[\] for 3 samples"),
    "a batch that is squeezed": (OfOne(lambda net, x: x.squeeze()), X, r"shape \[4\] for 1 sample; .*first dimension must be 1"),
    "no tensor": (OfOne(lambda net, x: "text"), X, "is a str, not a tensor"),
    "a batch as example": (nn.Conv2d(3, 4, 3), np.ones((1, 3, 8, 8), np.float32), "one sample, without a batch dimension"),
    "another dtype": (nn.Linear(4, 3), X.astype(np.float64), r"float64 \[3, 4\].*\.astype\('float32'\)"),
    "text": (nn.Linear(4, 3), "hello", "a str that makes no tensor"),
    "an input too few": (OfTwo(two), {"x": X}, "forward takes x, ids, scale; name each that it needs: example={'ids'"),
    "an input too many": (OfTwo(two), {"x": X, "ids": [1], "z": 1}, "forward has no parameter 'z'; it takes x, ids, scale"),
    "a wrong name": (nn.Linear(4, 3), {"image": X}, "whole dict went to forward's 'input', since no key"),
    "no example": (nn.Linear(4, 3), None, "give example="),
    "on no device": (nn.Linear(4, 3, device="meta"), X, "lies on meta"),
    "a class": (nn.Linear, X, "the class Linear: register an instance"),
    "a function": (lambda x: x, X, "wrap it in a torch.nn.Module"),
    "a tensor": (torch.zeros(3), None, "is data; register a module"),
    "a checkpoint": ({"state_dict": {"w": torch.zeros(2)}, "epoch": 3}, None, r"as checkpoints are: register those alone"),
    "a dict of other things": ({"w": torch.zeros(2), "epoch": 3}, None, "'epoch' is a int"),
    "a number": (5, None, "give a torch.nn.Module, an ExportedProgram"),
}  # fmt: skip
REFUSED["a part left in training mode"][0][1].train()  # type: ignore[index]


def test_inputs_that_are_taken_by_place_come_to_theirs_in_any_order(client: Client) -> None:
    module = ByPlace(
        lambda net, left, right, third, scale: left - 2 * right + (0 if third is None else third) * scale[:, None]
    )
    model = client.models.register("net", module, example={"scale": 1.0, "right": X, "left": X})
    assert [field.name for field in model.signature.inputs or ()] == ["left", "right", "scale"]
    [made] = served(client, model, {"right": X, "left": 3 * X, "scale": 1.0})
    np.testing.assert_allclose(made, X, atol=1e-6)
    with pytest.raises(InvalidInput, match="give them from the first on: left, right, third"):
        client.models.register("net", module, example={"left": X, "third": X, "scale": 1.0})


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_not_give_its_own_results_is_refused_and_nothing_is_stored(client: Client, name: str) -> None:
    artifact, example, told = REFUSED[name]
    inputs = {"x": {"dtype": "float32", "shape": [-1]}} if "free" in name else None
    with pytest.raises(InvalidInput, match=f"(?s){told}"):
        client.models.register("net", artifact, example=example, inputs=inputs)
    assert client.models.list() == []
    assert not any(path.is_file() for path in (client.settings.home / "blobs").rglob("*"))


def test_a_program_that_writes_to_its_input_leaves_the_columns_of_a_data_set_as_they_are(client: Client) -> None:
    model = client.models.register("net", OfOne(lambda net, x: functional.relu(x, inplace=True) + 1), example=X)
    path = client.session.blobs.fetch(model.artifact, client.settings.home / "fetched")
    loaded, columns = get_runtime(model.runtime).load(path, "cpu", model), {"x": np.stack([X, -X])}
    for _ in range(2):
        [made] = loaded.predict_columns(columns).values()  # type: ignore[attr-defined]
        np.testing.assert_array_equal(made, np.stack([X.clip(0), (-X).clip(0)]) + 1)
        np.testing.assert_array_equal(columns["x"], np.stack([X, -X]))


def test_a_module_is_left_as_it_was(client: Client) -> None:
    module = nn.Sequential(nn.Linear(4, 3), nn.ReLU())
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    client.models.register("net", module, example=X)
    assert module.training
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())
    assert all(parameter.requires_grad for parameter in module.parameters())


def test_a_module_that_was_scripted_leads_to_the_one_it_was_made_of(client: Client) -> None:
    with pytest.warns(DeprecationWarning, match="torch.jit.script"):
        scripted = torch.jit.script(nn.Linear(4, 3))
    with pytest.raises(InvalidInput, match=r"load_state_dict\(scripted.state_dict\(\)\)"):
        client.models.register("net", scripted, example=X)


def test_an_exported_program_is_taken_if_its_batch_is_free(client: Client) -> None:
    net, batch = nn.Linear(4, 3), torch.zeros(2, 4)
    with pytest.raises(InvalidInput, match="input 'input' has no free batch dimension; export it with dynamic_shapes"):
        client.models.register("net", torch.export.export(net, (batch,)))
    program = torch.export.export(net, (batch,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    model = client.models.register("net", program, example=X)
    assert model.has_example
    np.testing.assert_allclose(served(client, model, X)[0], own(net, [X])[0][0], atol=1e-6)


@pytest.mark.parametrize(
    ("module", "told"),
    [
        (Counting(), r"changes its own state when run \(torch.ops.aten.add_.Tensor\)"),
        (nn.Sequential(nn.Linear(4, 4), nn.Dropout()), "exported in training mode"),
        (
            OfOne(lambda net, x: functional.scaled_dot_product_attention(*[x[:, None]] * 3, dropout_p=0.1)),
            "drops out at random",
        ),
    ],
)
def test_a_program_that_keeps_or_draws_anything_is_refused(client: Client, module: nn.Module, told: str) -> None:
    shapes = (
        {"x": {0: torch.export.Dim("batch")}}
        if not isinstance(module, nn.Sequential)
        else ({0: torch.export.Dim("batch")},)
    )
    with pytest.raises(InvalidInput, match=told):
        client.models.register("net", torch.export.export(module, (torch.zeros(2, 4),), dynamic_shapes=shapes))


def make_tied() -> nn.Module:
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    net[1].weight = net[0].weight
    return net


def test_a_state_dict_is_served_by_a_factory(client: Client) -> None:
    net = make_tied()
    options = {"factory": f"{__name__}:make_tied"}
    model = client.models.register(
        "net", net.state_dict(), options=options, inputs={"x": {"dtype": "float32", "shape": [4]}}
    )
    assert model.runtime == "safetensors"
    np.testing.assert_allclose(served(client, model, X)[0], own(net, [X])[0][0], atol=1e-6)
    with pytest.raises(InvalidInput, match=r"needs options=\{'factory'"):
        client.models.register("net", net.state_dict())
