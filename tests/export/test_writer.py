import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from plaudit_export.checkpoints.checkpoint import load_checkpoint
from plaudit_export.errors import ExportError, SourceError
from plaudit_export.writer import staged, write_chat_template, write_golden, write_json, write_tokenizer
from plaudit_service.bundles.bundle import Golden


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """Something that looks like a bundle."""
    path = tmp_path / "bundle"
    path.mkdir()
    (path / "bundle.json").write_text("{}")
    return path


def test_a_bundle_appears_whole_and_only_at_the_end(tmp_path):
    target = tmp_path / "runs" / "bundle"
    with staged(target, force=False) as directory:
        (directory / "model.onnx").write_text("graph")
        assert not target.exists()
    assert [path.name for path in target.iterdir()] == ["model.onnx"]
    assert list(target.parent.iterdir()) == [target]


def test_a_failed_export_leaves_nothing(tmp_path):
    def export() -> None:
        with staged(tmp_path / "bundle", force=False) as directory:
            (directory / "model.onnx").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export()
    assert list(tmp_path.iterdir()) == []


def test_a_bundle_is_replaced_only_by_force_and_only_by_a_whole_one(bundle):
    with pytest.raises(SourceError, match="--force"), staged(bundle, force=False):
        pass
    with pytest.raises(ExportError), staged(bundle, force=True):
        raise ExportError("parity")
    assert (bundle / "bundle.json").read_text() == "{}"
    with staged(bundle, force=True) as directory:
        (directory / "bundle.json").write_text("new")
    assert (bundle / "bundle.json").read_text() == "new"
    assert list(bundle.parent.iterdir()) == [bundle]


def test_what_is_no_bundle_is_never_replaced(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    for target in (tmp_path, tmp_path / "thesis.txt"):
        with pytest.raises(SourceError, match="is not a bundle"), staged(target, force=True):
            pass
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_an_empty_directory_may_become_the_bundle(tmp_path):
    with staged(tmp_path, force=False) as directory:
        (directory / "bundle.json").write_text("{}")
    assert (tmp_path / "bundle.json").exists()


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SourceError, match="cannot be written"), staged(tmp_path / "file" / "bundle", force=False):
        pass


def test_the_tokenizer_is_written_without_its_truncation_and_padding(encoder_checkpoint, tmp_path):
    backend = load_checkpoint(str(encoder_checkpoint)).tokenizer.backend_tokenizer
    backend.enable_truncation(4)
    backend.enable_padding(length=100)
    write_tokenizer(backend, tmp_path)
    written = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert (written.truncation, written.padding) == (None, None)
    assert len(written.encode("the quick brown fox").ids) == 6
    assert backend.truncation["max_length"] == 4


def test_golden_records_are_written_one_per_line_in_full_precision(tmp_path):
    score = 0.1 + 0.2
    write_golden([Golden(item={"text": "ü\n"}, token_ids=(1, 2), heads=(score,), score=score)], tmp_path)
    lines = (tmp_path / "golden.jsonl").read_text(encoding="utf-8").splitlines()
    expected = {"item": {"text": "ü\n"}, "token_ids": [1, 2], "heads": [score], "score": score}
    assert [json.loads(line) for line in lines] == [expected]


def test_a_template_keeps_its_bytes(tmp_path):
    write_chat_template("{{ a }}\r\n  ü", tmp_path)
    assert (tmp_path / "chat_template.jinja").read_bytes() == "{{ a }}\r\n  ü".encode()


def test_json_is_written_without_nan(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json({"a": float("nan")}, tmp_path / "a.json")
