import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from plaudit_export import exporter
from plaudit_export.checkpoints.rules import Options, TextFile
from plaudit_export.cli import main
from plaudit_export.errors import ExportError
from plaudit_export.writer import write_golden, write_manifest
from plaudit_service.bundles.bundle import GOLDEN, Head, sha256_of

SCRIPT = Path(sys.executable).with_name("plaudit-export")


def test_a_checkpoint_becomes_a_bundle_and_guesses_are_told(causal_again):
    done = causal_again.done
    assert done.returncode == 0
    header, *_, verdict, _ = done.stdout.splitlines()
    assert header.split() == ["text", "tokens", "reference", "served", "|difference|"]
    assert len(done.stdout.splitlines()) == 3 + int(verdict.split()[0])
    assert "alone, batched and on a shared prefix the same bits" in done.stdout
    assert f"{causal_again.bundle}: tiny-llama sha256:" in done.stdout
    assert all(line.startswith("plaudit-export: ") for line in done.stderr.splitlines())
    assert "plaudit-export: note: no EOS is appended" in done.stderr


def test_every_option_reaches_the_export(tmp_path, monkeypatch):
    given = {}

    def export(source: str, bundle: Path, options: Options, **flags: object) -> None:
        given.update(source=source, bundle=bundle, options=options, force=flags["force"])
        raise ExportError("far enough")

    monkeypatch.setattr(exporter, "export_checkpoint", export)
    with_mark = "utf-8-sig"  # as editors on Windows write it
    (tmp_path / "golden.jsonl").write_text('{"text": "a"}\n', encoding=with_mark)
    (tmp_path / "template.jinja").write_text("{{ messages }}", encoding=with_mark)
    files = ["--golden", str(tmp_path / "golden.jsonl"), "--chat-template", str(tmp_path / "template.jinja")]
    files += ["--calibrate", str(tmp_path / "golden.jsonl"), "--normalize-on", str(tmp_path / "golden.jsonl")]
    flags = [
        "--append-eos",
        "--strip-newlines",
        "--space-before-eos",
        "--no-add-special-tokens",
        "--chat-special-tokens",
        "--pair",
        "--force",
        "--precision",
        "int8",
        "--allow-loss",
        "--builtin-class",
    ]
    values = ["--name", "rm", "--max-tokens", "99", "--heads", "a=0.5,b", "--tolerance", "1e-3", "--normalize", "mean"]
    values += ["--golden-max-tokens", "77", "--pad-token", "", "--token-logits", "yes=1,id:0=-1"]
    texts = TextFile([{"text": "a"}], sha256_of(tmp_path / "golden.jsonl"))
    assert main(["checkpoint", "org/model", "bundle", *files, *flags, *values]) == 1
    assert (given["source"], given["bundle"], given["force"]) == ("org/model", Path("bundle"), True)
    assert given["options"] == Options(
        name="rm",
        append_eos=True,
        add_special_tokens=False,
        chat_special_tokens=True,
        pair=True,
        max_tokens=99,
        heads=[Head(name="a", weight=0.5), Head(name="b", weight=1.0)],
        chat_template="{{ messages }}",
        golden=[{"text": "a"}],
        golden_max_tokens=77,
        tolerance=1e-3,
        precision="int8",
        calibrate=texts,
        allow_loss=True,
        normalize_on=texts,
        normalize_std=False,
        builtin_class=True,
        pad_token="",
        strip_newlines=True,
        space_before_eos=True,
        token_logits=(Head(name="yes", weight=1.0), Head(name="id:0", weight=-1.0)),
    )


def test_inspect_says_what_a_bundle_is(causal_bundle, capsys):
    assert main(["inspect", str(causal_bundle.bundle.path)]) == 0
    assert causal_bundle.bundle.fingerprint in capsys.readouterr().out


def test_verify_scores_the_golden_texts_again(causal_bundle, capsys):
    assert main(["verify", str(causal_bundle.bundle.path)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(causal_bundle.bundle.golden) + 2


def test_verify_fails_on_a_bundle_whose_scores_are_not_its_references(causal_bundle, tmp_path, capsys):
    copy = Path(shutil.copytree(causal_bundle.bundle.path, tmp_path / "copy"))
    golden = causal_bundle.bundle.golden
    write_golden([type(each)(each.item, each.token_ids, each.heads, each.score + 1) for each in golden], copy)
    manifest = causal_bundle.bundle.manifest
    hashes = manifest.sha256 | {GOLDEN: sha256_of(copy / GOLDEN)}
    write_manifest(manifest.model_copy(update={"sha256": hashes}), copy)
    assert main(["verify", str(copy)]) == 1
    assert "|served - reference| = 1, limit 1e-05" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["inspect", "verify"])
def test_a_damaged_bundle_is_refused(causal_bundle, tmp_path, capsys, command):
    copy = Path(shutil.copytree(causal_bundle.bundle.path, tmp_path / "copy"))
    (copy / "tokenizer.json").write_text("{}")
    assert main([command, str(copy)]) == 2
    assert one_line(capsys).startswith(f"plaudit-export: error: bundle {copy}: tokenizer.json has sha256")


def one_line(capsys: pytest.CaptureFixture) -> str:
    lines = capsys.readouterr().err.splitlines()
    errors = [line for line in lines if "error" in line]
    assert len(errors) == 1
    assert errors == lines[-1:]
    return errors[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "required: COMMAND"),
        (["checkpoint", "a"], "required: BUNDLE"),
        (["checkpoint", "a", "b", "--precision", "int4"], "int4"),
        (["checkpoint", "a", "b", "--max-tokens", "0"], "'0' is not a number of tokens"),
        (["checkpoint", "a", "b", "--tolerance", "-1"], "'-1' is not a positive number"),
        (["checkpoint", "a", "b", "--heads", "x=,x=2"], "one name of its own"),
        (["checkpoint", "a", "b", "--heads", "x=much"], "'much' is not a number"),
    ],
)
def test_wrong_usage_is_one_line(arguments, message, capsys):
    with pytest.raises(SystemExit) as raised:
        main(arguments)
    assert raised.value.code == 2
    assert message in one_line(capsys)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["/nowhere", "BUNDLE"], "no such directory"),
        (["CHECKPOINT", "CHECKPOINT"], "exists and is not a bundle"),
        (
            ["CHECKPOINT", "BUNDLE", "--max-tokens", "9999"],
            "--max-tokens 9999: more than the 128 usable positions of tiny-bert",
        ),
        (["CHECKPOINT", "BUNDLE", "--golden", "/nowhere"], "--golden /nowhere: cannot be read"),
        (["CHECKPOINT", "BUNDLE", "--normalize-on", "/nowhere"], "--normalize-on /nowhere: cannot be read"),
        (["CHECKPOINT", "BUNDLE", "--calibrate", "/nowhere"], "are for a reduced precision; give --precision int8"),
        (["CHECKPOINT", "BUNDLE", "--chat-template", "/nowhere"], "/nowhere: cannot be read"),
    ],
)
def test_what_the_user_gave_wrong_is_one_line_and_writes_nothing(
    arguments, message, encoder_checkpoint, tmp_path, capsys
):
    places = {"CHECKPOINT": str(encoder_checkpoint), "BUNDLE": str(tmp_path / "bundle")}
    assert main(["checkpoint", *(places.get(argument, argument) for argument in arguments)]) == 2
    assert message in one_line(capsys)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_bundle_needs_force(causal_bundle, encoder_checkpoint, capsys):
    assert main(["checkpoint", str(encoder_checkpoint), str(causal_bundle.bundle.path)]) == 2
    assert "replace the bundle with --force" in one_line(capsys)


def test_a_missing_library_names_the_extra(tmp_path):
    (tmp_path / "torch.py").write_text("raise ModuleNotFoundError(\"No module named 'torch'\", name='torch')")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    done = subprocess.run([SCRIPT, "checkpoint", "a", "b"], capture_output=True, text=True, env=environment)
    expected = "plaudit-export: error: torch is not installed; pip install 'plaudit[export]'"
    assert (done.returncode, done.stderr.strip()) == (2, expected)


def test_an_interrupt_is_no_stack_trace(monkeypatch, encoder_checkpoint, tmp_path, capsys):
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(exporter, "load_checkpoint", interrupt)
    assert main(["checkpoint", str(encoder_checkpoint), str(tmp_path / "bundle")]) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "plaudit-export: interrupted"
    assert list(tmp_path.iterdir()) == []


def test_help_names_units_and_defaults(capsys):
    with pytest.raises(SystemExit) as raised:
        main(["checkpoint", "--help"])
    assert raised.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert all(word in text for word in ("in tokens", "(default: fp32)", "(default: 1e-5;", "--no-append-eos"))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--normalize", "mean"], "mean-std and mean need --normalize-on FILE; saved and none do not take it"),
        (["--token-logits", "id:x=1"], "'x' is not a token id"),
        (["--step-token", "id:x"], "'x' is not a token id"),
    ],
)
def test_options_of_formats_that_make_no_sense_end_in_one_line(given, message, tmp_path, capsys):
    try:
        status = main(["checkpoint", str(tmp_path), str(tmp_path / "bundle"), *given])
    except SystemExit as ended:
        status = ended.code
    assert status == 2
    assert message in capsys.readouterr().err
