"""Whatever somebody tries to register says what it is and what to do, by what is in it and not only by its name."""

import pickle
from pathlib import Path

import pytest
import torch

from forebay import InvalidInput
from forebay.producer.artifacts import existing_artifact, runtime_of
from forebay.producer.recognition.files import recognize_file
from support.wrong_artifacts import FILES, FOLDERS, write

BY_ENDING = (
    "what.xyz",
    "noise.pt",
    "net.py",
    "config.json",
    "graph.pb",
    "net.engine",
    "flax_model.msgpack",
)  # have no marks


def refusal(path: Path, runtime: str | None = None) -> str:
    with pytest.raises(InvalidInput) as told:
        runtime_of(existing_artifact(path), runtime)
    return str(told.value)


@pytest.mark.parametrize("name", [*FILES, *FOLDERS])
def test_each_wrong_file_and_folder_gets_a_sentence_that_helps(name: str, tmp_path: Path) -> None:
    told = refusal(write(tmp_path, name))
    missing = [part for part in (FILES.get(name) or FOLDERS[name])[1] if part not in told]
    assert not missing, told


@pytest.mark.parametrize("name", [name for name in FILES if name not in BY_ENDING])
def test_a_wrong_file_says_the_same_under_the_ending_of_a_right_one(name: str, tmp_path: Path) -> None:
    own = refusal(write(tmp_path, name))
    stem = Path(name).stem
    disguised = (tmp_path / name).rename(tmp_path / f"{stem}.pt2")
    assert refusal(disguised).replace(f"{stem}.pt2", name) == own
    assert refusal(disguised, "torch-export").replace(f"{stem}.pt2", name) == own


def test_a_right_file_is_known_under_any_name(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    program = torch.export.export(torch.nn.Linear(4, 2), (torch.zeros(3, 4),))
    torch.export.save(program, pt2 := tmp_path / "net.pt2")
    save_file({"w": torch.zeros(2)}, weights := tmp_path / "net.safetensors")
    for path, runtime in ((pt2, "torch-export"), (weights, "safetensors")):
        assert runtime_of(path, None) == runtime
        assert runtime_of(path.rename(tmp_path / f"{runtime}.bin"), None) == runtime
    assert "is a safetensors file, of runtime 'safetensors', not 'torch-export'" in refusal(
        tmp_path / "safetensors.bin", "torch-export"
    )


def test_nothing_is_unpickled_to_find_out(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (Path(tmp_path / "boom"),)  # type: ignore[return-value]

    (tmp_path / "bomb.pkl").write_bytes(pickle.dumps(Bomb()))
    torch.save(Bomb(), tmp_path / "bomb.pt")
    for name in ("bomb.pkl", "bomb.pt"):
        assert "which runs code when it is opened" in refusal(tmp_path / name) or "runs code" in refusal(
            tmp_path / name
        )
    assert not (tmp_path / "boom").exists()


def test_a_file_of_a_zip_bomb_is_looked_at_within_bounds(tmp_path: Path) -> None:
    import zipfile

    with zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb/data.pkl", b"\x80\x02" + b"(" * 20_000_000)
    assert recognize_file(tmp_path / "bomb.pt") is not None


@pytest.mark.parametrize("path", ["/dev/null", "/proc/self/mem"])
@pytest.mark.parametrize("runtime", [None, "torch-export"])
def test_what_cannot_be_read_is_refused(path: str, runtime: str | None) -> None:
    assert "neither a file nor a folder" in (told := refusal(Path(path), runtime)) or "cannot be read" in told


def test_a_class_of_ones_own_reads_any_file(tmp_path: Path) -> None:
    assert runtime_of(write(tmp_path, "svc.pkl"), "python") == "python"


def test_a_runtime_of_folders_takes_no_file_and_no_pickled_weights(tmp_path: Path) -> None:
    assert "takes the folder that save_pretrained writes" in refusal(
        write(tmp_path, "config.json"), "sentence-transformers"
    )
    assert "weights are pickled" in refusal(write(tmp_path, "pickled_minilm"), "sentence-transformers")
