import os
from pathlib import Path

import pytest

from plaudit_client.whole_files import remove_directory, remove_unfinished, whole_directory, write_file


def names(directory):
    return sorted(path.name for path in directory.iterdir())


def make(path, name="file"):
    with whole_directory(path) as directory:
        (directory / "sub").mkdir()
        (directory / "sub" / name).write_text("one")


def test_a_directory_is_there_only_when_all_of_it_is_written(tmp_path):
    path = tmp_path / "a" / "made"
    with whole_directory(path) as directory:
        (directory / "file").write_text("one")
        assert not path.exists()
    assert (path / "file").read_text() == "one"
    assert names(path.parent) == ["made"]


def test_a_file_is_replaced_in_one_step(tmp_path):
    write_file(tmp_path / "made", "one")
    with (tmp_path / "made").open() as reader:
        write_file(tmp_path / "made", "two")
        assert reader.read() == "one"  # another file: the old one was never cut
    assert (tmp_path / "made").read_text() == "two"
    assert names(tmp_path) == ["made"]


def test_what_is_written_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    forced = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: forced.append(Path(f"/proc/self/fd/{descriptor}").readlink()))
    make(tmp_path / "made", "leaf")
    unfinished = tmp_path / ".unfinished-made"
    assert set(forced[:-1]) == {unfinished, unfinished / "sub", unfinished / "sub" / "leaf"}
    assert forced[-1] == tmp_path  # where the name is
    forced.clear()
    write_file(tmp_path / "made.txt", "one")
    assert forced == [tmp_path / ".unfinished-made.txt"]


def test_a_write_that_fails_leaves_what_was_there_and_nothing_else(tmp_path):
    make(tmp_path / "made")

    def fail():
        with whole_directory(tmp_path / "made") as directory:
            (directory / "half").touch()
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fail()
    assert names(tmp_path / "made") == ["sub"]
    assert names(tmp_path) == ["made"]


def test_what_a_killed_process_has_left_is_no_obstacle_and_can_be_removed(tmp_path):
    for left in ("made", "removed-made", "other"):
        (tmp_path / f".unfinished-{left}").mkdir()
        (tmp_path / f".unfinished-{left}" / "half").touch()
    for _ in range(2):
        make(tmp_path / "made")
    assert names(tmp_path / "made") == ["sub"]
    remove_unfinished(tmp_path)
    assert names(tmp_path) == ["made"]


def test_a_directory_is_replaced_and_removed(tmp_path):
    make(tmp_path / "made")
    with whole_directory(tmp_path / "made") as directory:
        (directory / "other").touch()
    assert names(tmp_path / "made") == ["other"]
    remove_directory(tmp_path / "made")
    remove_directory(tmp_path / "never")
    assert names(tmp_path) == []


def test_what_was_there_comes_back_where_the_new_directory_cannot_get_its_name(tmp_path, monkeypatch):
    place, rename = tmp_path / "place", Path.rename
    place.mkdir()
    (place / "old").touch()

    def fail_once(path, target):
        if target == place and (path / "new").exists():
            raise OSError(28, "No space left on device")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fail_once)
    with pytest.raises(OSError, match="No space left"), whole_directory(place) as directory:
        (directory / "new").touch()
    assert [path.relative_to(tmp_path).as_posix() for path in sorted(tmp_path.rglob("*"))] == ["place", "place/old"]
