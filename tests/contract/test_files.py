"""A file that several write at once is whole at every moment."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from scanlab.contract.files import write_atomically


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
