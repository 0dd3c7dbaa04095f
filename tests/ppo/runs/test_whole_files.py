import pytest

from plaudit_ppo.errors import OutputError
from plaudit_ppo.runs.whole_files import remove_directory, remove_unfinished, write_directory, write_file


def write_one(directory):
    (directory / "sub").mkdir()
    (directory / "sub" / "file").write_text("one")


def test_a_directory_is_there_only_when_all_of_it_is_written(tmp_path):
    seen = []

    def write(directory):
        write_one(directory)
        seen.append((tmp_path / "a" / "made").exists())

    write_directory(tmp_path / "a" / "made", write)
    assert seen == [False]
    assert (tmp_path / "a" / "made" / "sub" / "file").read_text() == "one"
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["made"]


def test_a_file_is_replaced_in_one_step(tmp_path):
    write_file(tmp_path / "made", "one")
    with (tmp_path / "made").open() as reader:
        write_file(tmp_path / "made", "two")
        assert reader.read() == "one"  # another file: the old one was never cut
    assert (tmp_path / "made").read_text() == "two"
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


def test_a_write_that_fails_leaves_what_was_there(tmp_path):
    write_directory(tmp_path / "made", write_one)

    def fail(directory):
        (directory / "half").touch()
        raise OSError("disk full")

    with pytest.raises(OutputError, match=r"made: cannot be written \(disk full\); resume the run once it can"):
        write_directory(tmp_path / "made", fail)
    assert (tmp_path / "made" / "sub" / "file").read_text() == "one"
    assert not (tmp_path / "made" / "half").exists()
    remove_unfinished(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


def test_a_directory_is_replaced_and_removed(tmp_path):
    write_directory(tmp_path / "made", write_one)
    write_directory(tmp_path / "made", lambda directory: (directory / "other").touch())
    assert [path.name for path in (tmp_path / "made").iterdir()] == ["other"]
    remove_directory(tmp_path / "made")
    remove_directory(tmp_path / "never")
    assert list(tmp_path.iterdir()) == []
