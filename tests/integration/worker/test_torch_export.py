"""The torch-export runtime on real exports: batches of any size, named inputs and outputs, what it refuses."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.export import Dim

from forebay.contract.errors import InvalidInput, ModelLoadFailed
from forebay.contract.pt2.archive import read_pt2_signature
from forebay.contract.signature import Signature
from forebay.worker.execution.model_cache import ModelCache
from forebay.worker.runtimes import get_runtime
from support.networks import Net, TwoHeads, bare, rows, version


def export(module: torch.nn.Module, args: tuple, path: Path, kwargs=None, **more) -> Path:
    torch.export.save(torch.export.export(module.eval(), args, kwargs, **more), path)
    return path


def load(path: Path, signature: Signature | None = None, device: str = "cpu"):
    declared = signature or Signature.parse(*read_pt2_signature(path))
    return get_runtime("torch-export").load(path, device, version("torch-export", declared))


@pytest.mark.parametrize("batch", [Dim("batch"), Dim.DYNAMIC, Dim("batch", min=2, max=8), Dim("batch", max=5)])
@pytest.mark.parametrize("n", [1, 2, 7, 8, 9, 33])
def test_an_export_takes_any_number_of_rows_whatever_range_it_was_exported_with(tmp_path, batch, n):
    net = Net().eval()
    model = load(export(net, (torch.zeros(3, 4),), tmp_path / "net.pt2", dynamic_shapes=({0: batch},)))
    given = rows(n, 4)
    np.testing.assert_allclose(np.stack(model.predict(given)), bare(net, given), rtol=1e-5)


def test_an_export_with_several_named_inputs_and_outputs_keeps_names_dtypes_and_order(tmp_path):
    module, batch = TwoHeads().eval(), Dim("batch")
    path = export(
        module, (torch.zeros(2, 4),), tmp_path / "two.pt2", {"ids": torch.zeros(2, 6, dtype=torch.int64)},
        dynamic_shapes={"x": {0: batch}, "ids": {0: batch, 1: Dim("length")}},
    )  # fmt: skip
    assert read_pt2_signature(path) == (
        {"x": {"dtype": "float32", "shape": [4]}, "ids": {"dtype": "int64", "shape": [-1]}},
        {
            "logits": {"dtype": "float32", "shape": [3]},
            "total": {"dtype": "int64", "shape": []},
            "argmax": {"dtype": "int64", "shape": []},
        },
    )
    given = [{"ids": np.arange(i, i + 5), "x": row["x"]} for i, row in enumerate(rows(3, 4))]  # order of keys is free
    made = load(path).predict(given)
    assert [row["total"] for row in made] == [10, 15, 20]
    np.testing.assert_allclose(np.stack([row["logits"] for row in made]), bare(module.net, given), rtol=1e-5)
    assert {name: np.asarray(value).dtype.name for name, value in made[0].items()} == {
        "logits": "float32", "total": "int64", "argmax": "int64",
    }  # fmt: skip


def test_inputs_and_outputs_in_lists_and_dicts_get_names_of_their_own(tmp_path):
    class Nested(torch.nn.Module):
        def forward(self, pair, more):
            return pair["a"] + more[0], [pair["b"] * 2], None

    example = ({"a": torch.zeros(2, 1), "b": torch.zeros(2, 1)}, [torch.zeros(2, 1)])
    free = {0: Dim.DYNAMIC}
    path = export(Nested(), example, tmp_path / "nested.pt2", dynamic_shapes=({"a": free, "b": free}, [free]))
    inputs, outputs = read_pt2_signature(path)
    assert list(inputs) == ["pair_a", "pair_b", "more_0"]
    assert list(outputs) == ["output_0", "output_1_0"]
    row = {"pair_a": np.ones(1, "f4"), "pair_b": np.full(1, 2, "f4"), "more_0": np.full(1, 3, "f4")}
    assert load(path).predict([row]) == [{"output_0": np.float32(4), "output_1_0": np.float32(4)}]


def test_an_export_without_a_declared_signature_takes_the_value_itself(tmp_path):
    net = Net()
    path = export(net, (torch.zeros(2, 4),), tmp_path / "net.pt2", dynamic_shapes=({0: Dim("batch")},))
    given = rows(2, 4)
    made = load(path, Signature()).predict([row["x"] for row in given])
    np.testing.assert_allclose(np.stack(made), bare(net, given), rtol=1e-5)


def test_an_export_may_have_its_one_input_declared_under_another_name(tmp_path):
    path = export(Net(), (torch.zeros(2, 4),), tmp_path / "net.pt2", dynamic_shapes=({0: Dim("batch")},))
    declared = Signature.parse({"pixels": {"dtype": "float32", "shape": [4]}})
    assert len(load(path, declared).predict(rows(2, 4, name="pixels"))) == 2


def test_a_declared_input_that_the_program_lacks_fails_the_load(tmp_path):
    path = export(Net(), (torch.zeros(2, 4),), tmp_path / "net.pt2", dynamic_shapes=({0: Dim("batch")},))
    declared = Signature.parse({name: {"dtype": "float32", "shape": [4]} for name in "ab"})
    with pytest.raises(ModelLoadFailed, match="declares a, b; the program takes x"):
        load(path, declared)


@pytest.mark.parametrize(("place", "why"), [("content", r"damaged.*CRC"), ("name", r"damaged.*utf-8")])
def test_damaged_weights_fail_the_load_in_words(tmp_path, place, why):
    path = export(Net(), (torch.zeros(2, 4),), tmp_path / "net.pt2", dynamic_shapes=({0: Dim("batch")},))
    with zipfile.ZipFile(path) as archive:
        weight = next(info for info in archive.infolist() if "/data/weights/weight_0" in info.filename)
    data = bytearray(path.read_bytes())
    name, extra = (
        int.from_bytes(data[weight.header_offset + at : weight.header_offset + at + 2], "little") for at in (26, 28)
    )
    if place == "content":
        data[weight.header_offset + 30 + name + extra] ^= 1
    else:  # it says that its name is UTF-8, and it is not
        data[weight.header_offset + 7] |= 0x08
        data[weight.header_offset + 33] = 0xFB
    path.write_bytes(data)
    with pytest.raises(ModelLoadFailed, match=why):
        load(path)


def test_a_static_batch_is_refused_with_the_words_to_type(tmp_path):
    path = export(Net(), (torch.zeros(2, 4),), tmp_path / "net.pt2")
    with pytest.raises(InvalidInput, match=r"dynamic_shapes=\{'x': \{0: torch\.export\.Dim\('batch'\)\}\}"):
        read_pt2_signature(path)


def test_an_output_without_the_batch_is_refused(tmp_path):
    class Mean(torch.nn.Module):
        def forward(self, x):
            return x.mean()

    path = export(Mean(), (torch.zeros(2, 4),), tmp_path / "mean.pt2", dynamic_shapes=({0: Dim("batch")},))
    with pytest.raises(InvalidInput, match="one row per sample"):
        read_pt2_signature(path)


def test_a_program_in_training_mode_is_refused(tmp_path):
    program = torch.export.export(
        torch.nn.BatchNorm1d(4).train(), (torch.zeros(3, 4),), dynamic_shapes=({0: Dim("batch", min=2)},)
    )
    torch.export.save(program, tmp_path / "train.pt2")
    with pytest.raises(InvalidInput, match=r"module\.eval\(\)"):
        read_pt2_signature(tmp_path / "train.pt2")


def test_bfloat16_comes_in_and_goes_out_as_float32(tmp_path):
    net = Net().bfloat16()
    example = torch.zeros(2, 4, dtype=torch.bfloat16)
    path = export(net, (example,), tmp_path / "net.pt2", dynamic_shapes=({0: Dim("batch")},))
    assert read_pt2_signature(path)[0] == {"x": {"dtype": "float32", "shape": [4]}}
    made = load(path).predict(rows(2, 4))
    assert made[0].dtype == np.float32


def test_a_convolution_with_free_height_and_symbolic_arithmetic_loads_and_warms_up(tmp_path):
    class Conv(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = torch.nn.Sequential(
                torch.nn.Conv2d(1, 2, 3, stride=2), torch.nn.ReLU(), torch.nn.MaxPool2d(2)
            )

        def forward(self, x):
            y = self.layers(x)
            return y[:, :, : y.shape[2] // 2].flatten(1).mean(1, keepdim=True)

    shapes = ({0: Dim("batch"), 2: Dim.DYNAMIC},)
    path = export(Conv(), (torch.zeros(2, 1, 32, 32),), tmp_path / "conv.pt2", dynamic_shapes=shapes)
    inputs, outputs = read_pt2_signature(path)
    assert inputs == {"x": {"dtype": "float32", "shape": [1, -1, 32]}}
    models = ModelCache(2**30, lambda spec: path, "cpu")
    loaded = models.get(version("torch-export", Signature.parse(inputs, outputs)))
    assert loaded.warm
    assert len(loaded.model.predict(rows(3, 1, 20, 32))) == 3


def test_an_export_made_for_a_gpu_runs_where_there_is_none(tmp_path):
    path = export(Net(), (torch.zeros(2, 4),), tmp_path / "net.pt2", dynamic_shapes=({0: Dim("batch")},))
    moved = tmp_path / "moved.pt2"
    cpu, gpu = b'{"type": "cpu", "index": null}', b'{"type": "cuda", "index": 0}'
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(moved, "w") as new:
        for name in old.namelist():
            new.writestr(name, old.read(name).replace(cpu, gpu))
    assert len(load(moved).predict(rows(2, 4))) == 2


def test_the_bytes_of_an_export_are_those_of_its_tensors(tmp_path):
    path = export(Net(), (torch.zeros(2, 4),), tmp_path / "net.pt2", dynamic_shapes=({0: Dim("batch")},))
    assert load(path).nbytes() == 4 * (4 * 4 + 4 + 4 * 3 + 3 + 3)


class AtLeastOne(torch.nn.Module):
    def forward(self, x, n):  # (batch, 4), (batch,)
        torch._check(n.min().item() >= 1)
        return x * n[:, None]


def test_a_program_that_refuses_zeros_is_loaded_and_serves_what_it_takes(tmp_path):
    path, batch = tmp_path / "least.pt2", Dim("batch")
    export(
        AtLeastOne(),
        (torch.ones(3, 4), torch.ones(3, dtype=torch.int64)),
        path,
        dynamic_shapes=({0: batch}, {0: batch}),
    )
    spec = version("torch-export", Signature.parse(*read_pt2_signature(path)))
    loaded = ModelCache(1 << 30, lambda _: path, "cpu").get(spec)
    assert not loaded.warm
    [made] = loaded.model.predict([{"x": np.ones(4, np.float32), "n": np.int64(2)}])
    assert made.tolist() == [2, 2, 2, 2]
    example = {"x": np.ones(4, np.float32), "n": np.array(1)}
    assert ModelCache(1 << 30, lambda _: path, "cpu", example=lambda _: example).get(spec).warm


def test_a_shape_that_the_program_does_not_take_is_refused_each_time_whatever_was_taken_before(tmp_path):
    class Sum(torch.nn.Module):
        def forward(self, a, b):
            return (a + b).sum(1, keepdim=True)

    n, batch = Dim("n", min=2, max=8), Dim("batch")
    path = export(
        Sum(),
        (torch.ones(2, 4), torch.ones(2, 4)),
        tmp_path / "s.pt2",
        dynamic_shapes={name: {0: batch, 1: n} for name in "ab"},
    )
    model = load(path)
    rows = {size: {name: np.ones(size, np.float32) for name in "ab"} for size in (4, 9)}
    one_to_many = {"a": np.ones(1, np.float32), "b": np.ones(4, np.float32)}  # which torch itself would broadcast
    for _ in range(3):
        assert model.predict([rows[4]] * 3)[2].tolist() == [8.0]
        for refused in (rows[9], one_to_many):
            with pytest.raises(RuntimeError, match=r"shape"):
                model.predict([refused] * 3)
