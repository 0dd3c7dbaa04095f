import os
from pathlib import Path

import pytest

from plaudit_service.whole_files import whole_directory


def names(directory):
    return sorted(path.name for path in directory.iterdir())


def test_a_directory_is_there_only_when_the_block_has_ended_well(tmp_path):
    path = tmp_path / "a" / "made"
    with whole_directory(path) as aside:
        (aside / "file").write_text("one")
        assert not path.exists()
    assert (path / "file").read_text() == "one"
    assert names(path.parent) == ["made"]


def test_a_block_that_fails_leaves_what_was_there_and_nothing_else(tmp_path):
    path = tmp_path / "made"
    with whole_directory(path) as aside:
        (aside / "file").write_text("one")

    def fail():
        with whole_directory(path, replace=True) as aside:
            (aside / "half").touch()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert names(path) == ["file"]
    assert names(tmp_path) == ["made"]


def test_a_directory_gives_way_only_where_that_is_asked_for(tmp_path):
    path = tmp_path / "made"
    for replace, content in ((False, ["one"]), (True, ["two"])):
        with whole_directory(path, replace=replace) as aside:
            (aside / content[0]).touch()
        assert names(path) == content
    with pytest.raises(OSError, match="not empty"), whole_directory(path):
        pass
    assert names(path) == ["two"]
    assert names(tmp_path) == ["made"]


def test_two_that_make_the_same_directory_do_not_meet(tmp_path):
    path = tmp_path / "made"
    with whole_directory(path, replace=True) as first, whole_directory(path, replace=True) as second:
        (first / "first").touch()
        (second / "second").touch()
    assert names(path) == ["first"]  # the one that ended last


def test_a_directory_has_the_permissions_that_others_have(tmp_path):
    former = os.umask(0o027)
    try:
        with whole_directory(tmp_path / "made"):
            pass
    finally:
        os.umask(former)
    assert (tmp_path / "made").stat().st_mode & 0o777 == 0o750


def test_what_was_there_comes_back_where_the_new_directory_cannot_get_its_name(tmp_path, monkeypatch):
    place, rename = tmp_path / "place", Path.rename
    place.mkdir()
    (place / "old").touch()

    def fail_once(path, target):
        if target == place and (path / "new").exists():
            raise OSError(28, "No space left on device")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fail_once)
    with pytest.raises(OSError, match="No space left"), whole_directory(place, replace=True) as directory:
        (directory / "new").touch()
    assert [path.relative_to(tmp_path).as_posix() for path in sorted(tmp_path.rglob("*"))] == ["place", "place/old"]
