import pytest

from plaudit_demo.errors import OutputError
from plaudit_demo.output import MARKER, prepare_output, read_jsonl, write_jsonl


def test_a_missing_directory_is_made_with_its_parents(tmp_path):
    assert prepare_output(tmp_path / "a" / "b") == tmp_path / "a" / "b"
    assert [entry.name for entry in (tmp_path / "a" / "b").iterdir()] == [MARKER]


def test_a_former_demo_is_replaced(tmp_path):
    output = prepare_output(tmp_path / "demo")
    (output / "bundle").mkdir()
    (output / "bundle" / "model.onnx").write_text("old")
    (output / "index.html").write_text("old")
    prepare_output(output)
    assert [entry.name for entry in output.iterdir()] == [MARKER]


def test_a_directory_with_other_files_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(OutputError, match="not an earlier demo"):
        prepare_output(tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"
    assert not (tmp_path / MARKER).exists()


def test_what_a_link_in_a_former_demo_points_to_is_kept(tmp_path):
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").write_text("kept")
    output = prepare_output(tmp_path / "demo")
    (output / "link").symlink_to(precious)
    prepare_output(output)
    assert (precious / "file").read_text() == "kept"
    assert not (output / "link").exists()


def test_a_file_in_the_place_of_the_directory_is_an_error_of_the_user(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written") as caught:
        prepare_output(tmp_path / "file")
    assert caught.value.exit_code == 2


def test_rows_survive_a_file(tmp_path):
    rows = [{"text": "Grüße\u2028 line", "gold": -0.1}, {"text": "", "gold": 1e-17}]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    assert read_jsonl(tmp_path / "rows.jsonl") == rows
