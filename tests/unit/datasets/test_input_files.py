"""Which files a path, glob or folder names: links are followed, and nothing is left out without a word."""

import os
from pathlib import Path

import pytest

from forebay.contract.errors import InvalidInput
from forebay.datasets.formats.files import absolute, find_files


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """`in` with a file, a link to a file and a link to a folder, both of which lie in `other`."""
    for name in ("in", "other"):
        (tmp_path / name).mkdir()
    (tmp_path / "in" / "own.csv").write_text("a\n1\n")
    (tmp_path / "other" / "far.csv").write_text("a\n1,23\n")
    (tmp_path / "in" / "link.csv").symlink_to("../other/far.csv")
    (tmp_path / "in" / "linked").symlink_to(tmp_path / "other")
    return tmp_path / "in"


def found(given: Path | str) -> list[str]:
    return [Path(file.path).name for file in find_files(given, [".csv"])]


def test_links_to_files_and_folders_are_followed_in_folders_globs_and_paths(folder: Path) -> None:
    assert found(folder) == found(f"{folder}/**/*.csv") == ["link.csv", "far.csv", "own.csv"]
    assert found(f"{folder}/*.csv") == ["link.csv", "own.csv"]
    assert found(f"{folder}/l*/*.csv") == found(folder / "linked") == ["far.csv"]
    assert [file.size for file in find_files(folder / "link.csv", [".csv"])] == [7]


@pytest.mark.parametrize("target", ["..", ".", "../linked", "self"])
def test_a_link_that_leads_in_a_circle_or_nowhere_is_refused_by_name(folder: Path, target: str) -> None:
    (folder.parent / "other" / "x.csv").symlink_to(target)
    words = "nothing" if target == "self" else "a folder that holds it|nothing"
    for given in (folder, f"{folder}/**/*.csv", folder / "linked"):
        with pytest.raises(InvalidInput, match=rf"x\.csv' is a symbolic link to ({words})"):
            found(given)


def test_two_folders_that_link_to_each_other_are_refused(folder: Path) -> None:
    (folder.parent / "other" / "back").symlink_to(folder)
    with pytest.raises(InvalidInput, match=r"back' is a symbolic link to a folder that holds it"):
        found(folder)
    (folder / ".git").mkdir()
    (folder.parent / "other" / "back").rename(folder / ".git" / "back")
    assert len(found(folder)) == 3, "what is hidden is passed over"


def test_a_pipe_and_a_name_that_is_not_utf8_are_refused(folder: Path) -> None:
    os.mkfifo(folder / "pipe.csv")
    for given in (folder, f"{folder}/*.csv", folder / "pipe.csv"):
        with pytest.raises(InvalidInput, match=r"pipe\.csv' is not a regular file"):
            found(given)
    (folder / "pipe.csv").unlink()
    strange = Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.csv"))
    strange.write_text("a\n1\n")
    for given in (folder, f"{folder}/*.csv", strange):
        with pytest.raises(InvalidInput, match=r"caf\\xe9\.csv' is not UTF-8; rename it"):
            found(given)


def test_a_relative_path_is_of_the_folder_that_the_process_is_in_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        Path("in.csv").write_text("x\n1\n")
        assert absolute("out") == absolute(Path("out")) == str(tmp_path / name / "out")
        assert [file.path for file in find_files("in.csv", [".csv"])] == [str(tmp_path / name / "in.csv")]
