"""Training runs in this process: what each recipe learns, that serving applies what training found, that a run can go on."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_diabetes, load_digits
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from forebay.contract.drift.sketch import MISSING, Sketcher
from forebay.contract.errors import ForebayError, InvalidInput, ModelLoadFailed, ModelRefused
from forebay.contract.requests.batch import InputFile
from forebay.contract.requests.recipes import RECIPES, check_params
from forebay.contract.requests.training import Split, TrainRequest
from forebay.worker.runtimes import BUILT_IN, get_runtime
from forebay.worker.trainer.recipes import get_recipe
from forebay.worker.trainer.scoring import Scorer
from support.training_runs import Run, columns_of, npz, request, run, serve

HALVES = Split(validation=0.2, test=0.3)
EVERY_STEP: dict[str, Any] = {"checkpoint_steps": 1, "checkpoint_minutes": None, "checkpoint_keep": 100}


def line(folder: Path, rows: int = 200) -> TrainRequest:
    x = np.random.default_rng(1).normal(size=(rows, 2))
    files = npz(folder, x1=x[:, 0], x2=x[:, 1], y=3 * x[:, 0] - 2 * x[:, 1] + 1)
    return request("regressor", files, "y", params={"optimizer": "gd", "lr": 0.1, "momentum": 0.9, "epochs": 120})


def two_classes(folder: Path, rows: int = 120, **more: object) -> TrainRequest:
    x = np.random.default_rng(2).normal(size=(rows, 2)).astype(np.float32)
    files = npz(folder, a=x[:, 0], b=x[:, 1], y=(x[:, 0] + x[:, 1] > 0).astype(int))
    return request("classifier", files, "y", **{"split": HALVES, **more})


def test_the_regressor_finds_a_line(tmp_path: Path) -> None:
    model, spec = run(line(tmp_path)).served()
    at_zero, at_x1, at_x2 = serve(model, spec, {"x1": [0, 1, 0], "x2": [0, 0, 1]})
    assert (at_zero, at_x1 - at_zero, at_x2 - at_zero) == pytest.approx((1, 3, -2), abs=1e-2)


def test_the_regressor_is_as_good_as_ridge_on_diabetes(tmp_path: Path) -> None:
    x, y = load_diabetes(return_X_y=True)
    split = np.array(["train", "validation", "test"])[np.random.default_rng(1).choice(3, len(y), p=(0.7, 0.1, 0.2))]
    files = npz(tmp_path, **{f"x{i}": column for i, column in enumerate(x.T)}, y=y, part=split)
    params = {"optimizer": "gd", "lr": 0.1, "momentum": 0.9, "epochs": 300, "weight_decay": 1e-3}
    made = run(request("regressor", files, "y", params=params, split=Split(column="part"))).trained
    train, test = split != "test", split == "test"
    ridge = make_pipeline(StandardScaler(), Ridge()).fit(x[train], y[train]).score(x[test], y[test])
    assert made.metrics["r2"] == pytest.approx(ridge, rel=0.05)


def test_the_image_classifier_learns_digits(tmp_path: Path) -> None:
    digits = load_digits()
    files = npz(tmp_path, pixels=digits.data.astype(np.uint8), label=digits.target)
    done = run(request("image-classifier", files, "label", params={"epochs": 8, "batch_size": 64, "lr": 0.003}))
    assert done.trained.metrics["accuracy"] >= 0.97
    assert done.trained.inputs == {"image": {"dtype": "float32", "shape": [8, 8], "nan": False}}
    assert done.data.classes == tuple("0123456789")
    assert np.trace(np.array(done.trained.confusion)) / 359 == pytest.approx(done.trained.metrics["accuracy"], abs=1e-6)


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_the_sequence_classifier_learns_an_order_that_a_bag_of_tokens_cannot(tmp_path: Path, cell: str) -> None:
    rng = np.random.default_rng(0)
    letters = np.array([rng.permutation(list("abcdef")) for _ in range(400)])
    texts = np.array(["".join(row) for row in letters])
    files = npz(tmp_path, text=texts, first=np.array([text.index("a") < text.index("b") for text in texts]))
    params = {"cell": cell, "tokens": "characters", "epochs": 12, "lr": 0.02, "hidden": 24, "embedding": 8}
    done = run(request("sequence-classifier", files, "first", params=params))
    assert done.trained.metrics["accuracy"] >= 0.95
    model, spec = done.served()
    found = serve(model, spec, {"text": ["abcdef", "bacdef", "cdefab", "fedcba"]})
    assert [row["label"] for row in found] == ["true", "false", "true", "false"]


def test_sequences_of_numbers_may_differ_in_length(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rng = np.random.default_rng(4)
    lengths, ups = rng.integers(2, 9, 150), rng.integers(0, 2, 150)
    path.write_text("".join(
        f'{{"s": {[int(i if up else -i) for i in range(length)]}, "up": "{"up" if up else "down"}"}}\n'
        for length, up in zip(lengths, ups, strict=True)
    ))  # fmt: skip
    params = {"epochs": 8, "lr": 0.02, "hidden": 8}
    done = run(
        TrainRequest(
            "sequence-classifier",
            (InputFile(str(path), path.stat().st_size),),
            "jsonl",
            "up",
            params=params,
            split=HALVES,
        )
    )
    assert done.trained.metrics["accuracy"] >= 0.95
    model, spec = done.served()
    long, short = np.arange(7, dtype=np.float32), np.arange(3, dtype=np.float32)
    alone = [serve(model, spec, {"sequence": [one]})[0] for one in (long, short)]
    assert [row["label"] for row in alone] == ["up", "up"]
    together = model.predict([{"sequence": long}, {"sequence": short}])
    np.testing.assert_allclose(together[1]["probabilities"], alone[1]["probabilities"], atol=1e-6)
    rows = [np.float32(json.loads(line)["s"]) for line in path.read_text().splitlines()]
    one_by_one = np.sum([model.trained_on({"sequence": [row]}) for row in rows], axis=0)
    assert one_by_one.tolist() == [*model.trained_on({"sequence": rows})], "however far they are padded"
    assert one_by_one[1] > 0


def test_images_of_a_folder_are_served_as_the_bytes_of_a_file(tmp_path: Path) -> None:
    for i in range(40):
        name, color = ("red", (220, i, i)) if i % 2 else ("blue", (i, i, 220))
        (tmp_path / name).mkdir(exist_ok=True)
        Image.new("RGB", (9, 7), color).save(tmp_path / name / f"{i}.png")
    files = tuple(InputFile(str(path), path.stat().st_size) for path in sorted(tmp_path.rglob("*.png")))
    params = {"size": 8, "channels": [8], "hidden": [], "epochs": 6, "lr": 0.01}
    done = run(TrainRequest("image-classifier", files, "images", params=params, split=HALVES))
    assert done.trained.metrics["accuracy"] == 1
    model, spec = done.served()
    assert spec.signature.inputs_json() == {"image": {"dtype": "bytes"}}
    assert [row["label"] for row in serve(model, spec, {"image": [Path(files[0].path).read_bytes()]})] == ["blue"]
    assert model.predict([model.sample_row()])[0]["label"] in ("red", "blue")


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A classifier on numbers with gaps and on categories."""
    rng = np.random.default_rng(3)
    city, size = rng.choice(["Rome", "Oslo", "Bern"], 240), rng.normal(50, 20, 240)
    warm = np.where((city == "Rome") | (size > 60), "warm", "cold")
    size[::7] = np.nan
    files = npz(tmp_path_factory.mktemp("mixed"), city=city, size=size, warm=warm)
    params = {"epochs": 25, "lr": 0.02, "class_weights": "balanced", "loss": "bce", "hidden": [16]}
    return run(request("classifier", files, "warm", params=params, missing="mean", metric="f1", split=HALVES))


def test_the_classifier_takes_categories_and_fills_gaps(mixed: Run) -> None:
    assert mixed.trained.metrics["accuracy"] > 0.85
    assert mixed.data.dropped == 0
    model, spec = mixed.served()
    rows = {"city": ["Rome", "Oslo", "Oslo", "Atlantis"], "size": [20.0, 110.0, 5.0, float("nan")]}
    found = serve(model, spec, rows)
    assert [row["label"] for row in found[:3]] == ["warm", "warm", "cold"]
    assert all(row["probabilities"].sum() == pytest.approx(1) for row in found)


def test_serving_gives_the_metrics_that_the_run_told_in_any_batches(mixed: Run) -> None:
    model, spec = mixed.served()
    archive = np.load(mixed.folder.parent / "data.npz")
    held = np.sort(np.random.default_rng(0).permutation(240)[:72])  # as splitting takes the test split, by the seed
    columns = {"city": archive["city"][held].tolist(), "size": archive["size"][held].tolist()}
    truth = archive["warm"][held].tolist()
    together = serve(model, spec, columns)
    alone = [serve(model, spec, {"city": [a], "size": [b]})[0] for a, b in zip(*columns.values(), strict=True)]
    for made in (together, alone):
        scorer = Scorer(mixed.data.classes)
        scorer.add(columns_of(made), truth)
        assert scorer.metrics() == pytest.approx(dict(mixed.trained.metrics), abs=1e-5)
        assert scorer.confusion() == mixed.trained.confusion


def test_rows_that_were_trained_on_are_known_again_in_any_chunk_and_other_rows_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = two_classes(tmp_path, rows=400, params={"epochs": 1})
    model, _ = run(asked).served()
    data = np.load(tmp_path / "data.npz")
    columns = {name: data[name] for name in "ab"}
    known, seen = model.trained_on(columns)
    assert (known, seen) == (400, len(model.keys))
    assert 150 < seen < 250, "half of them were held out"
    parts = [
        model.trained_on({name: list(column[i : i + 7]) for name, column in columns.items()}) for i in range(0, 400, 7)
    ]
    assert np.sum(parts, axis=0).tolist() == [400, seen]
    assert model.trained_on({name: column + 1 for name, column in columns.items()}) == (400, 0)
    monkeypatch.setattr("forebay.worker.trainer.artifact.KEPT_KEYS", 40)
    monkeypatch.setattr("forebay.worker.runtimes.recipe.KEPT_KEYS", 40)
    (tmp_path / "few").mkdir()
    sampled, _ = run(two_classes(tmp_path / "few", rows=400, params={"epochs": 1})).served()
    known, found = sampled.trained_on(columns)
    assert found == 40
    assert found / known == pytest.approx(seen / 400, abs=0.2)


def test_whole_columns_give_what_rows_give_with_the_names_of_the_classes(tmp_path: Path) -> None:
    model, spec = run(two_classes(tmp_path, params={"epochs": 2})).served()
    columns = {name: np.linspace(-2, i, 9, dtype=np.float32) for i, name in enumerate("ab")}
    rows = model.predict([{"a": a, "b": b} for a, b in zip(*columns.values(), strict=True)])
    made = model.predict_columns(columns)
    assert made["label"].tolist() == [row["label"] for row in rows]
    np.testing.assert_allclose(made["probabilities"], [row["probabilities"] for row in rows], atol=1e-6)
    named = spec.signature.by_class(rows[0])
    assert tuple(named["probabilities"]) == spec.classes == model.classes
    assert max(named["probabilities"], key=named["probabilities"].get) == named["label"]


@pytest.mark.parametrize(
    "params",
    [
        {"epochs": 3, "batch_size": 10, "dropout": 0.3, "schedule": "cosine", "optimizer": "adamw"},
        {"epochs": 3, "batch_size": 8, "accumulate": 2, "optimizer": "sgd", "momentum": 0.9, "clip": 1.0},
        {"epochs": 9, "batch_size": 20, "early_stopping_epochs": 2, "lr": 0.05, "schedule": "step"},
    ],
    ids=["dropout", "accumulate", "early stopping"],
)
def test_a_run_that_goes_on_from_any_checkpoint_ends_as_the_undisturbed_one(
    tmp_path: Path, params: dict[str, object]
) -> None:
    asked = two_classes(tmp_path, 60, params=params, **EVERY_STEP)
    whole = run(asked)
    told = {(point.split, point.step): point.values for point in (*whole.points("train"), *whole.points("validation"))}
    for checkpoint in whole.saved[::4]:
        rest = run(asked, whole.folder / checkpoint.path)
        assert rest.trained == whole.trained
        for point in (*rest.points("train"), *rest.points("validation")):
            assert point.values == pytest.approx(told[point.split, point.step], abs=1e-6)
        for name, tensor in rest.weights().items():
            torch.testing.assert_close(tensor, whole.weights()[name], atol=1e-7, rtol=0)


def test_only_the_last_checkpoints_are_kept_and_they_hold_nothing_to_unpickle(tmp_path: Path) -> None:
    done = run(two_classes(tmp_path, params={"epochs": 2}, **(EVERY_STEP | {"checkpoint_keep": 2})))
    left = sorted(path.name for path in (done.folder / "checkpoints").iterdir())
    assert left == [Path(saved.path).name for saved in done.saved[-2:]]
    kept = torch.load(done.folder / done.saved[-1].path, weights_only=True)
    assert {"state_dict", "optimizer_states", "lr_schedulers", "loops", "callbacks"} <= kept.keys()


def test_a_checkpoint_of_other_data_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    done = run(two_classes(tmp_path, params={"epochs": 2}, **EVERY_STEP))
    with pytest.raises(InvalidInput, match="the data set has changed since the checkpoint was written"):
        run(two_classes(tmp_path / "other", 100, **EVERY_STEP), done.folder / done.saved[0].path)


def test_what_is_exported_is_the_best_state_by_the_metric_on_validation(tmp_path: Path) -> None:
    asked = two_classes(tmp_path, 60, params={"epochs": 12, "lr": 0.5, "batch_size": 4}, metric="loss")
    done = run(asked)
    losses = [point.values["loss"] for point in done.points("validation")]
    assert min(losses) < losses[-1], "the run got no worse: it shows nothing"
    # The split by column puts the validation rows where held-out ones are measured.
    order = np.random.default_rng(0).permutation(60)
    archive = np.load(tmp_path / "data.npz")
    rows = np.sort(order[18:30])
    model, spec = done.served()
    scorer = Scorer(done.data.classes)
    made = serve(model, spec, {name: archive[name][rows] for name in ("a", "b")})
    scorer.add(columns_of(made), archive["y"][rows])
    assert scorer.metrics()["loss"] == pytest.approx(min(losses), abs=1e-5)


def test_a_run_that_gets_no_better_stops_early(tmp_path: Path) -> None:
    done = run(two_classes(tmp_path, params={"epochs": 50, "lr": 1e-9, "early_stopping_epochs": 3}, metric="loss"))
    assert done.trained.stopped_early
    assert done.trained.epochs < 50


def test_a_run_in_half_precision_learns_as_well(tmp_path: Path) -> None:
    done = run(two_classes(tmp_path, params={"epochs": 30, "lr": 0.05, "precision": "bf16-mixed", "hidden": []}))
    assert done.trained.metrics["accuracy"] > 0.9
    assert all(tensor.dtype == torch.float32 for tensor in done.weights().values())


def test_without_held_out_rows_there_are_no_metrics(tmp_path: Path) -> None:
    done = run(two_classes(tmp_path, params={"epochs": 2}, split=Split(validation=0, test=0)))
    assert done.trained.metrics == {}
    assert done.trained.confusion is None
    assert done.data.rows == {"train": 120, "validation": 0, "test": 0}


def test_points_tell_where_the_run_is(tmp_path: Path) -> None:
    done = run(two_classes(tmp_path, params={"epochs": 3, "batch_size": 20}))
    assert [(point.step, point.epoch, point.steps) for point in done.points("validation")] == [
        (3, 1, 9),
        (6, 2, 9),
        (9, 3, 9),
    ]
    last = done.points("train")[-1]
    assert (last.step, last.eta_s) == (9, 0)
    assert last.rows_per_s is not None
    assert set(done.points("validation")[0].values) == {"loss", "accuracy", "precision", "recall", "f1", "auroc"}


def bad(folder: Path, **more: object) -> TrainRequest:
    """A data set in which much is wrong."""
    columns = {
        "x": np.arange(12.0),
        "gone": np.full(12, np.nan),
        "word": np.array([*"abcdefghijk", "7"]),
        "one": np.ones(12, int),
        "y": np.arange(12) % 2,
    }
    asked = request("classifier", npz(folder, **columns), "y", features=("x",), split=HALVES)
    return TrainRequest(**{**{name: getattr(asked, name) for name in TrainRequest.__struct_fields__}, **more})


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"target": "z"}, "no column 'z'; there are 'x', 'gone', 'word', 'one', 'y'"),
        ({"target": None}, "which column is to be learned"),
        ({"target": "x", "features": ("x",)}, "features: 'x' is the target"),
        ({"target": "gone"}, "target 'gone' is missing in every row"),
        ({"target": "one"}, "target 'one' is '1' in all 6 training rows"),
        ({"target": "word", "recipe": "regressor"}, "target 'word' holds 'a'; this recipe learns numbers"),
        ({"features": ("gone",)}, "column 'gone' is missing in every row"),
        ({"features": ("gone",), "missing": "mean"}, "column 'gone' has no value"),
        ({"missing": "zero"}, "matching regex .* at `..missing`"),
        ({"split": Split(column="word")}, "column 'word' holds train, validation and test; one row holds 'a'"),
        ({"recipe": "oracle"}, "no recipe is called 'oracle'; known are classifier"),
        ({"recipe": "os:system"}, "not on the operator's list"),
        ({"params": {"depth": 3}}, "no parameter 'depth'"),
        ({"params": {"categorical": ["word"]}}, "categorical: 'word' is not a feature"),
        ({"params": {"loss": "bce"}, "target": "word"}, "loss bce is for two classes; the target has 12"),
        ({"params": {"class_weights": "balanced"}, "recipe": "regressor"}, "class_weights is for classes"),
        (
            {"params": {"early_stopping_epochs": 1}, "split": Split(validation=0, test=0.2)},
            "early_stopping_epochs needs a validation split",
        ),
        (
            {
                "params": {"lr": 1e3, "epochs": 40, "optimizer": "sgd"},
                "recipe": "regressor",
                "target": "x",
                "features": ("one", "y"),
            },
            "lower lr",
        ),
        ({"metric": "r2"}, "cannot be judged by 'r2'"),
        (
            {"recipe": "regressor", "target": "x", "features": ("y",), "split": Split(validation=0.08, test=0)},
            "r2 cannot be measured on this validation split, only loss, mae, rmse",
        ),
        ({"recipe": "image-classifier", "features": ("x", "one")}, "image-classifier learns from one column"),
        ({"recipe": "sequence-classifier", "missing": "mean"}, "'mean' does not work for sequences"),
    ],
)
def test_what_cannot_be_trained_is_refused_with_the_column_and_the_value(
    tmp_path: Path, more: dict[str, object], said: str
) -> None:
    with pytest.raises(ForebayError, match=said):
        run(bad(tmp_path, **more))


def test_every_recipe_of_the_table_is_there_and_learns_what_it_says() -> None:
    of_tables = {name: known.tasks[0] for name, known in RECIPES.items() if known.tasks != ("text",)}
    assert {name: get_recipe(name)(check_params(name, {})).task for name in of_tables} == of_tables
    assert all(get_recipe(name)(check_params(name, {})).state == {} for name in of_tables)
    assert "recipe" in BUILT_IN
    assert get_runtime("recipe") is not None


def test_a_folder_that_no_training_job_made_is_no_artifact(tmp_path: Path) -> None:
    done = run(two_classes(tmp_path, params={"epochs": 1}))
    (done.folder / "artifact" / "recipe.json").write_text('{"form": 1}')
    with pytest.raises(ModelLoadFailed, match="as a training job makes it"):
        done.served()


def test_the_recipe_in_the_docs_is_trained_and_served_where_it_is_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (Path(__file__).resolve().parents[3] / "docs" / "how-to" / "write-a-recipe.md").read_text(encoding="utf-8")
    (code,) = (block.split("```")[0] for block in text.split("```python\n") if "class Polynomial" in block)
    (tmp_path / "my_recipes.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    x = np.linspace(-2, 2, 200)
    params = {"degree": 3, "optimizer": "gd", "lr": 0.3, "momentum": 0.9, "epochs": 150}
    asked = request("my_recipes:Polynomial", npz(tmp_path, x=x, y=x**3 - x), "y", params=params)
    with pytest.raises(ModelRefused, match="not on the operator's list"):
        run(asked)
    done = run(asked, allowed=("my_recipes",))
    assert done.trained.metrics["r2"] > 0.99
    model, spec = done.served(allowed=("my_recipes",))
    assert serve(model, spec, {"x": [2.0, -1.0]}) == pytest.approx([6.0, 0.0], abs=0.3)
    with pytest.raises(ModelRefused):
        done.served()


def test_the_reference_holds_what_the_version_was_trained_on_and_gave_for_held_out_rows(mixed: Run) -> None:
    model, spec = mixed.served()
    reference = mixed.trained.reference
    assert reference is not None
    assert [(c.side, c.name) for c in reference.columns] == [
        ("input", "city"), ("input", "size"), ("output", "label"), ("output", "probabilities[cold]"),
        ("output", "probabilities[warm]"),
    ]  # fmt: skip
    rows = mixed.data.rows
    assert [sum(c.counts) for c in reference.columns] == [*[rows["train"]] * 2, *[rows["test"]] * 3]
    archive = np.load(mixed.folder.parent / "data.npz")
    held = np.sort(np.random.default_rng(0).permutation(240)[:72])
    columns = {"city": archive["city"][held].tolist(), "size": archive["size"][held].tolist()}
    made = columns_of(serve(model, spec, columns))
    sketcher = Sketcher(reference, spec.signature)
    counts = sketcher.zeros()
    sketcher.count("output", made, counts)
    sketcher.count("input", columns, counts)
    assert counts[2].tolist() == list(reference.columns[2].counts)
    assert np.abs(counts[3:] - [c.counts for c in reference.columns[3:]]).sum() < 10  # of 144: some stand at an edge
    assert counts[1][MISSING] == sum(map(np.isnan, columns["size"]))
