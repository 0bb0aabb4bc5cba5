"""The hash of a data set: of its files' bytes, whoever asks, and of an image folder's labels."""

import hashlib
import shutil
from pathlib import Path

from forebay.contract.requests.batch import CSV, IMAGES
from forebay.datasets.formats.files import content_hash, find_files


def test_it_is_that_of_the_bytes_wherever_they_lie(tmp_path: Path) -> None:
    first, second = tmp_path / "a.csv", tmp_path / "b.csv"
    first.write_bytes(b"x,y\n1,2\n")
    second.write_bytes(b"x,y\n3,4\n")
    found = content_hash(find_files([first, second], [".csv"]), CSV)
    assert found == hashlib.sha256(first.read_bytes() + second.read_bytes()).hexdigest()
    (tmp_path / "elsewhere").mkdir()
    for file in (first, second):
        shutil.copy(file, tmp_path / "elsewhere")
    assert content_hash(find_files(tmp_path / "elsewhere", [".csv"]), CSV) == found
    second.write_bytes(b"x,y\n3,5\n")
    assert content_hash(find_files([first, second], [".csv"]), CSV) != found


def test_an_image_under_another_label_is_other_data(tmp_path: Path) -> None:
    for label in ("cat", "dog"):
        (tmp_path / label).mkdir()
    (tmp_path / "cat" / "1.png").write_bytes(b"picture")
    before = content_hash(find_files(tmp_path, [".png"]), IMAGES)
    (tmp_path / "cat" / "1.png").rename(tmp_path / "dog" / "1.png")
    assert content_hash(find_files(tmp_path, [".png"]), IMAGES) != before
