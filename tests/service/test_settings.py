"""The settings of `plaudit-serve`: from flags, from variables, and what is refused."""

import argparse
import pickle
from dataclasses import fields, replace
from typing import get_args

import pytest
from pydantic import ValidationError

from plaudit_service.errors import SettingsError
from plaudit_service.http.dialects.endpoint import DIALECTS
from plaudit_service.settings import (
    Dialect,
    Settings,
    add_arguments,
    environment_variable,
    from_arguments,
    shown_default,
)


def parser():
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser


def read(*flags, **environ):
    return from_arguments(parser().parse_args(flags), environ)


def test_what_is_not_set_has_its_default():
    assert read() == read(PLAUDIT_PORT="", UNKNOWN="1") == Settings()


def test_a_flag_wins_over_its_variable_and_that_over_the_default():
    assert read(PLAUDIT_PORT="1").port == 1
    assert read("--port", "2", PLAUDIT_PORT="1").port == 2


def test_text_becomes_what_the_setting_is():
    settings = read("--drain-timeout-s", "1e1", "--max-batch-tokens", "64", "--host", "::1")
    assert (settings.drain_timeout_s, settings.max_batch_tokens, settings.host) == (10.0, 64, "::1")
    assert type(read("--keep-alive-s", "3").keep_alive_s) is float


def test_a_device_wins_over_the_older_provider():
    assert read().computes_on == "cpu"
    assert read("--provider", "cuda").computes_on == "cuda"
    assert read("--device", "cuda:1").computes_on == "cuda:1"
    assert read("--device", "cpu", PLAUDIT_PROVIDER="cuda").computes_on == "cpu"


@pytest.mark.parametrize("word", ["1", "true", "Yes", "TRUE"])
def test_a_variable_switches_on(word):
    assert read(PLAUDIT_OPEN_METRICS=word).open_metrics is True


@pytest.mark.parametrize("word", ["0", "false", "No", "FALSE"])
def test_a_variable_switches_off(word):
    assert read(PLAUDIT_SHARE_PREFIXES=word).share_prefixes is False


def test_a_flag_switches_on_and_off():
    assert read("--open-metrics", PLAUDIT_OPEN_METRICS="no").open_metrics is True
    assert read("--no-share-prefixes").share_prefixes is False


def test_combinations_are_flags_or_separated_by_semicolons():
    assert read("--combine", "x=min(a,b)", "--combine", " y=a+b ", "--combine", "").combine == ("x=min(a,b)", "y=a+b")
    assert read(PLAUDIT_COMBINE="x=min(a,b); y=a+b;").combine == ("x=min(a,b)", "y=a+b")
    assert Settings(combine=("x=min(a,b)",)).combine == ("x=min(a,b)",)


def test_dialects_are_separated_by_commas():
    assert read("--dialects", "slime, vllm,").dialects == ("slime", "vllm")
    assert read("--dialects", "slime", "--dialects", "vllm").dialects == ("slime", "vllm")
    assert Settings(dialects="slime,vllm") == Settings(dialects=["slime", "vllm"])
    assert Settings(dialects="").dialects == ()


def test_the_dialects_that_can_be_named_are_those_that_are_answered():
    assert get_args(Dialect) == tuple(DIALECTS)


WRONG = [
    ("port", "http", "'http' is not a whole number"),
    ("port", "80.5", "'80.5' is not a whole number"),
    ("port", "-1", "-1, but the minimum is 0"),
    ("port", "65536", "65536, but the maximum is 65535"),
    ("max_batch_tokens", "0", "0, but the minimum is 1"),
    ("engine_timeout_s", "0.01", "0.01, but the minimum is 0.1"),
    ("body_timeout_s", "soon", "'soon' is not a number"),
    ("body_timeout_s", "nan", "'nan' is not a finite number"),
    ("drain_timeout_s", "inf", "'inf' is not a finite number"),
    ("runtime", "torch", "'torch' is not one of onnxruntime, openvino, vllm"),
    ("provider", "tensorrt", "'tensorrt' is not one of cpu, cuda"),
    ("device", "cuda:first", "'cuda:first' is not of a form like cpu, cuda, cuda:1"),
    ("device", "tensorrt", "'tensorrt' is not of a form like cpu, cuda, cuda:1"),
    ("prefix_cache_bytes", "-1", "-1, but the minimum is 0"),
    ("dialects", "slime,nemo", "'nemo' is not one of openrlhf, llamafactory, vllm, slime, tei, sglang, nemo-gym"),
    ("dialect_truncation", "middle", "'middle' is not one of error, left, right"),
]


@pytest.mark.parametrize(("name", "text", "says"), WRONG)
def test_a_wrong_flag_or_variable_is_one_line_that_names_it(name, text, says):
    flag, variable = f"--{name.replace('_', '-')}", environment_variable(name)
    for where, settings in ((flag, [f"{flag}={text}"]), (variable, [])):
        with pytest.raises(SettingsError) as refused:
            read(*settings, **{variable: text})
        assert str(refused.value) == f"{where}: {says}"


def test_a_variable_that_is_neither_true_nor_false_is_refused():
    with pytest.raises(SettingsError) as refused:
        read(PLAUDIT_OPEN_METRICS="maybe")
    assert str(refused.value) == "PLAUDIT_OPEN_METRICS: 'maybe' is neither true nor false"


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("max_batch_tokens", 1.5, "--max-batch-tokens: 1.5 is not a whole number"),
        ("max_batch_tokens", [1], "--max-batch-tokens: [1] is not a whole number"),
        ("open_metrics", 2, "--open-metrics: 2 is neither true nor false"),
        ("host", 5, "--host: 5 cannot be used: Input should be a valid string"),
    ],
)
def test_a_value_of_a_config_file_is_checked_as_a_flag_is(name, value, says):
    given = {setting.name: None for setting in fields(Settings)} | {name: value}
    with pytest.raises(SettingsError) as refused:
        from_arguments(argparse.Namespace(**given), {})
    assert str(refused.value) == says


def test_settings_of_code_are_checked_too():
    with pytest.raises(ValidationError, match="max_batch_tokens"):
        Settings(max_batch_tokens=0)
    with pytest.raises(ValidationError, match="batch_tokens"):
        Settings(batch_tokens=1)
    assert replace(Settings(port=1), num_threads=2) == Settings(port=1, num_threads=2)
    assert pickle.loads(pickle.dumps(Settings(port=1))) == Settings(port=1)  # noqa: S301  our own bytes


def test_every_default_is_of_its_type_and_within_its_limits():
    assert Settings(**{setting.name: setting.default for setting in fields(Settings)}) == Settings()


def test_the_help_names_every_flag_with_default_and_variable():
    text = " ".join(parser().format_help().split())
    for setting in fields(Settings):
        assert f"--{setting.name.replace('_', '-')} " in text
        assert f"(default: {shown_default(setting.default)}; {environment_variable(setting.name)})" in text


@pytest.mark.parametrize(
    ("default", "shown"),
    [("", "not set"), ((), "not set"), (None, "not set"), (False, "false"), (0, "0"), (1.5, "1.5"), ("cpu", "cpu")],
)
def test_a_default_is_shown_as_an_operator_would_write_it(default, shown):
    assert shown_default(default) == shown


@pytest.mark.parametrize("key", ["a\0b", "a\xa0b", "\0", "\x1b", "ä"])
def test_a_key_that_cannot_stand_in_a_header_is_refused_and_not_repeated(tmp_path, key):
    file = tmp_path / "keys"
    file.write_text(f"right\n\n{key}\n")
    for settings, environ, place in (
        (Settings(api_key_file=str(file)), {}, f"--api-key-file {file}: key 3"),
        (Settings(), {"PLAUDIT_API_KEYS": f"right,,{key}"}, "PLAUDIT_API_KEYS: key 3"),
    ):
        with pytest.raises(SettingsError) as caught:
            settings.api_keys(environ)
        assert (
            str(caught.value)
            == f"{place} contains characters that are not allowed in an HTTP header; give printable ASCII"
        )
