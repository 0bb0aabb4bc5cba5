"""The model cache with hand-written runtimes: what it loads, keeps, drops and refuses. No torch."""

import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from structlog.testing import capture_logs

from forebay.contract.errors import InvalidInput, ModelLoadFailed
from forebay.contract.model import ModelVersion
from forebay.contract.signature import Signature
from forebay.storage.blobs.store import BlobStore
from forebay.worker.execution import model_cache
from forebay.worker.execution.model_cache import Artifacts, ModelCache
from forebay.worker.runtimes import get_runtime


class FakeModel:
    def __init__(self, size: int, predict: Callable) -> None:
        self.size, self.predict, self.seen = size, predict, []

    def nbytes(self) -> int:
        return self.size


class FakeRuntime:
    """Makes models whose size is in `options`; keeps what it made."""

    def __init__(self, predict: Callable = lambda rows: list(rows)) -> None:
        self.predict, self.made = predict, []

    def load(self, path, device, spec):
        self.made.append(spec.ref)
        return FakeModel(spec.options["size"], self.predict)


def version(name: str, size: int = 10, **more) -> ModelVersion:
    signature = more.pop("signature", Signature.parse({"x": {"dtype": "float32", "shape": [2]}}))
    return ModelVersion(name, 1, "fake", "", "none", 0, signature, options={"size": size}, **more)


def cache(budget: int, runtime: FakeRuntime | None = None) -> ModelCache:
    made = runtime or FakeRuntime()
    return ModelCache(budget, lambda spec: None, "cpu", runtimes=lambda name, allowed: made)


def names(held) -> list[str]:
    return [name for name, _ in held]


def test_a_model_is_loaded_once():
    models = cache(100)
    assert models.get(version("a")) is models.get(version("a"))
    assert (models.loads, models.evictions, models.bytes) == (1, 0, 10)


def test_the_least_recently_used_goes_first_and_only_as_many_as_needed():
    models = cache(30)
    for name in ("a", "b", "c"):
        models.get(version(name))
    models.get(version("a"))
    models.get(version("d"))
    assert names(models.held()) == ["c", "a", "d"]
    assert (models.evictions, models.bytes) == (1, 30)


def test_models_are_counted_by_bytes_not_by_number(monkeypatch: pytest.MonkeyPatch):
    released = []
    monkeypatch.setattr(model_cache, "release_memory", released.append)
    models = cache(100)
    for name in "abcdefgh":
        models.get(version(name, 1))
    models.get(version("large", 99))
    assert names(models.held()) == ["h", "large"]
    assert released == ["cpu"], "memory is given back once for seven models"


def test_a_model_larger_than_the_budget_is_loaded_alone():
    models = cache(30)
    models.get(version("a"))
    models.get(version("huge", 500))
    assert names(models.held()) == ["huge"]
    models.get(version("b"))
    assert names(models.held()) == ["b"]


def test_room_is_made_for_the_artifact_before_it_is_loaded():
    held_while_loading = []
    runtime = FakeRuntime(lambda rows: held_while_loading.append(names(models.held())) or list(rows))
    models = cache(30, runtime)
    models.get(version("a", 20))
    models.get(_sized(version("b", 20), 20))
    assert held_while_loading[-1] == []


def _sized(spec: ModelVersion, artifact_bytes: int) -> ModelVersion:
    return replace(spec, artifact_bytes=artifact_bytes)


def test_a_model_that_refuses_made_up_zeros_is_loaded_with_a_warning():
    def predict(rows):
        if not rows[0]["x"].any():
            raise RuntimeError("a length must be at least 1")
        return list(rows)

    with capture_logs() as logs:
        loaded = cache(100, FakeRuntime(predict)).get(version("a"))
    assert not loaded.warm
    assert [(line["event"], line["reason"]) for line in logs if line["log_level"] == "warning"] == [
        ("warm_up_failed", "RuntimeError: a length must be at least 1")
    ]


def test_a_model_that_has_no_room_for_one_row_fails_to_load():
    def predict(rows):
        raise MemoryError("20 GiB")

    with pytest.raises(ModelLoadFailed, match="MemoryError"):
        cache(100, FakeRuntime(predict)).get(version("a"))


def test_a_failed_warm_up_on_the_models_own_row_is_a_failed_load_with_its_cause(monkeypatch):
    def predict(rows):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(FakeModel, "sample_row", lambda self: {"x": np.ones(2)}, raising=False)
    models = cache(100, FakeRuntime(predict))
    with pytest.raises(ModelLoadFailed, match=r"a/1 failed its warm-up on its own row.*mat1 and mat2") as caught:
        models.get(version("a"))
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert (models.loads, models.held()) == (0, ())


def test_a_model_is_warmed_up_with_the_row_it_was_registered_with_and_must_take_it(monkeypatch):
    def predict(rows):
        if rows[0]["x"][0] < 1:
            raise RuntimeError("a length must be at least 1")
        return list(rows)

    monkeypatch.setattr(FakeModel, "sample_row", lambda self: {"x": np.zeros(2)}, raising=False)

    def load(first: float):
        made = FakeRuntime(predict)
        models = ModelCache(
            100, lambda _: None, "cpu", runtimes=lambda *_: made, example=lambda spec: {"x": np.array([first, 0])}
        )
        return models.get(version("a"))

    with capture_logs() as logs:
        assert load(1).warm
    assert not [line for line in logs if line["log_level"] == "warning"]
    with pytest.raises(
        ModelLoadFailed, match="a/1 failed its warm-up on the example it was registered with: RuntimeError: a length"
    ):
        load(0)


def test_a_model_that_loses_rows_fails_its_warm_up():
    with pytest.raises(ModelLoadFailed, match="gave 0 rows for 1"):
        cache(100, FakeRuntime(lambda rows: [])).get(version("a"))


def test_a_model_is_warmed_up_twice_on_zeros_of_its_signature():
    seen = []
    inputs = {"x": {"dtype": "int64", "shape": [3, 2]}, "t": {"dtype": "str"}}
    models = cache(100, FakeRuntime(lambda rows: seen.extend(rows) or list(rows)))
    loaded = models.get(version("a", signature=Signature.parse(inputs)))
    assert loaded.warm
    assert len(seen) == 2
    np.testing.assert_array_equal(seen[0]["x"], np.zeros((3, 2), np.int64))
    assert seen[0]["x"].dtype == np.int64
    assert seen[0]["t"] == "warm"


def test_a_free_dimension_that_is_too_small_is_tried_larger():
    def predict(rows):
        if rows[0]["x"].shape[1] < 7:
            raise RuntimeError("kernel size cannot be greater than input size")
        return list(rows)

    signature = Signature.parse({"x": {"dtype": "float32", "shape": [3, -1]}})
    assert cache(100, FakeRuntime(predict)).get(version("a", signature=signature)).warm


@pytest.mark.parametrize("inputs", [None, {"x": {"dtype": "json"}}, {"x": {"dtype": "bytes"}}])
def test_a_model_whose_rows_cannot_be_made_up_is_not_warmed_up(inputs):
    def predict(rows):
        raise AssertionError("it must not run")

    loaded = cache(100, FakeRuntime(predict)).get(version("a", signature=Signature.parse(inputs)))
    assert not loaded.warm


def test_a_model_without_its_own_count_is_at_least_as_large_as_its_artifact():
    class Plain:
        def predict(self, rows):
            return list(rows)

    class Runtime:
        def load(self, path, device, spec):
            return Plain()

    models = ModelCache(10**9, lambda spec: None, "cpu", runtimes=lambda name, allowed: Runtime())
    assert models.get(_sized(version("a"), 12_345)).nbytes >= 12_345


def test_many_threads_asking_for_one_model_load_it_once():
    runtime = FakeRuntime()
    models = cache(100, runtime)
    threads = [threading.Thread(target=models.get, args=(version("a"),)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert runtime.made == ["a/1"]


def test_a_damaged_copy_of_an_artifact_is_fetched_again(tmp_path: Path) -> None:
    blobs = BlobStore((tmp_path / "blobs").as_uri())
    version = ModelVersion("m", 1, "python", blobs.put(b"weights"), "file", 7, Signature())
    artifacts = Artifacts(blobs, tmp_path / "artifacts")
    copy = artifacts.fetch(version)
    assert copy is not None
    copy.write_bytes(b"weightZ")
    assert artifacts.fetch(version) == copy
    assert copy.read_bytes() == b"weights"


def test_a_failed_fetch_leaves_the_cache_as_it_was():
    def fetch(spec):
        if spec.name == "gone":
            raise ConnectionError("blob store away")

    models = ModelCache(100, fetch, "cpu", runtimes=lambda name, allowed: runtime)
    runtime = FakeRuntime()
    models.get(version("a"))
    with pytest.raises(ConnectionError):
        models.get(version("gone"))
    assert names(models.held()) == ["a"]


def test_an_unknown_runtime_is_refused_with_the_known_ones():
    with pytest.raises(InvalidInput, match=r"no runtime is called 'nope'.*python.*safetensors.*torch-export"):
        get_runtime("nope")


def test_the_cache_and_the_lookup_import_no_torch():
    code = "import sys, forebay.worker.runtimes, forebay.worker.execution.model_cache; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


class FakeBase(FakeModel):
    """A language model that takes adapters."""

    def adapted(self, path, spec):
        made = FakeModel(spec.options["size"], self.predict)
        made.whole = self
        return made


class FakeBases(FakeRuntime):
    def load(self, path, device, spec):
        self.made.append(spec.ref)
        return FakeBase(spec.options["size"], self.predict)


def adapter(name: str, size: int = 5) -> ModelVersion:
    return replace(version(name), runtime="text-generation", options={"size": size, "base": "base/1"})


def with_adapters(budget: int, runtime: FakeRuntime | None = None) -> ModelCache:
    made = runtime or FakeBases()
    return ModelCache(budget, lambda spec: Path("artifact"), "cpu", runtimes=lambda name, allowed: made)


def test_adapters_of_one_base_share_it():
    models, base = with_adapters(1000), version("base", 100)
    loaded = [models.get(adapter(name), base) for name in ("one", "two")]
    whole = models.get(base)
    assert {id(one.model.whole) for one in loaded} == {id(whole.model)}
    assert (models.loads, models.bytes, models.sizes()) == (3, 110, {("base", 1): 100, ("one", 1): 5, ("two", 1): 5})


def test_a_base_stays_while_an_adapter_of_it_is_used_and_takes_its_adapters_with_it():
    models, base = with_adapters(120), version("base", 100)
    models.get(adapter("one"), base)
    models.get(version("other", 15))
    models.get(adapter("two"), base)
    models.get(adapter("three", 10), base)
    assert names(models.held()) == ["two", "base", "three"]  # 115 of 120
    models.get(adapter("huge", 500), base)
    assert names(models.held()) == ["base", "huge"], "room cannot be made by dropping what it runs on"
    models.get(version("other", 15))
    assert names(models.held()) == ["other"]


def test_an_adapter_whose_base_takes_none_is_refused():
    models = with_adapters(100, FakeRuntime())
    with pytest.raises(ModelLoadFailed, match="one/1: its base base/1 takes no adapters"):
        models.get(adapter("one"), version("base"))
