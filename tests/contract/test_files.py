"""A file that several write at once is whole at every moment."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from scanlab.contract.files import own_folder, read_text, write_atomically


def without_home(*names: str, **options: object) -> Path:
    """Find no folder, as new versions of platformdirs do."""
    raise RuntimeError("could not determine the home directory")


@pytest.mark.parametrize("kind", ["cache", "data"])
@pytest.mark.parametrize("find", [without_home, lambda *names, **options: Path("~") / names[0]])
def test_a_user_without_a_home_folder_has_one_for_temporary_files(tmp_path: Path, monkeypatch, find, kind) -> None:
    assert own_folder(kind).is_absolute()
    monkeypatch.setattr(f"platformdirs.user_{kind}_path", find)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert own_folder(kind) == tmp_path / f"scanlab-{os.getuid()}" / kind


def test_writers_at_once_leave_one_whole_text_and_nothing_else(tmp_path: Path) -> None:
    path, texts = tmp_path / "new" / "file.json", [letter * 100_000 for letter in "abcd"]
    write_atomically(path, texts[0])

    def write(text: str) -> None:
        for _ in range(5):
            write_atomically(path, text)

    writers = [threading.Thread(target=write, args=(text,)) for text in texts]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        assert path.read_text() in texts
    assert list(path.parent.iterdir()) == [path]


def test_what_cannot_be_written_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    write_atomically(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "\ud800")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_file_behind_a_link_is_written_and_the_link_stays(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    link = tmp_path / "profile.json"
    link.symlink_to(Path("kept") / "real.json")
    write_atomically(link, "new")
    assert link.is_symlink()
    assert (tmp_path / "kept" / "real.json").read_text() == "new"


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "circle", "larger"])
def test_what_is_no_file_or_has_no_end_is_refused_and_not_waited_for(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "profile.json"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    elif kind == "circle":
        path.symlink_to(path.name)
    else:
        with path.open("wb") as file:
            file.truncate(2**40)
    with pytest.raises(OSError, match="profile.json"):
        read_text(path)
