import pytest

from plaudit_service.bundles.bundle import load_bundle
from plaudit_service.engine.remote.opening import engine_urls, open_fleet
from plaudit_service.errors import BundleError, SettingsError
from plaudit_service.settings import Settings


def settings(*urls, **more):
    return Settings(runtime="vllm", engine_url=list(urls), **more)


def test_several_addresses_are_servers_of_the_one_model_and_names_tell_several_models_apart():
    assert engine_urls(settings("http://a:1,https://b:2/"), ["rm"]) == {"rm": ["http://a:1", "https://b:2"]}
    named = engine_urls(settings("help=http://a:1", "harm=http://b:2/x", "help=http://c:3"), ["help", "harm"])
    assert named == {"help": ["http://a:1", "http://c:3"], "harm": ["http://b:2/x"]}


@pytest.mark.parametrize(("urls", "names", "told"), [
    (["localhost:8000"], ["rm"], "localhost:8000: is not the URL of a server; write http://HOST:PORT"),
    (["ftp://a"], ["rm"], "is not the URL of a server"),
    (["http://a:port"], ["rm"], "is not the URL of a server"),
    (["http://a?key=1"], ["rm"], "is not the URL of a server"),
    (["http://me:secret@a:1"], ["rm"], "contains a user name or password; give the API key with --engine-key-file"),
    (["other=http://me:secret@a:port"], ["rm"], "contains a user name or password"),
    (["other=http://a:1"], ["rm"], "no model other is served; here: rm"),
    (["http://a:1"], ["one", "two"], "2 models are served; write NAME=URL"),
    (["one=http://a:1"], ["one", "two"], "no server for two; give --engine-url two=http://HOST:PORT"),
])  # fmt: skip
def test_what_is_no_address_or_names_no_model_is_refused(urls, names, told):
    with pytest.raises(SettingsError, match=told.replace("?", r"\?")) as error:
        engine_urls(settings(*urls), names)
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(("changes", "told"), [
    ({"runtime": "vllm"}, "--runtime vllm: needs the URL of a vLLM server; give --engine-url"),
    ({"runtime": "vllm", "engine_url": ["http://a"], "device": "cuda"}, "not on this machine; leave --device cuda out"),
    ({"engine_url": ["http://a"]}, "--runtime onnxruntime computes in this process; give --runtime vllm, too"),
])  # fmt: skip
def test_settings_of_engines_that_do_not_fit_together_are_refused(changes, told):
    with pytest.raises(SettingsError, match=told):
        Settings(**changes).check_engine()


def test_a_bundle_with_a_graph_and_files_that_are_no_key_or_certificate_are_refused(tiny_bundle, tmp_path):
    with pytest.raises(BundleError, match="was exported with a graph of its own; serve it without --runtime vllm"):
        open_fleet(load_bundle(tiny_bundle()), ["http://a:1"], settings("http://a:1"))
    bundle = load_bundle(tiny_bundle(engine="vllm"))
    (tmp_path / "two").write_text("one\ntwo\n")
    for files, told in (
        ({"engine_key_file": str(tmp_path / "none")}, "--engine-key-file .*none: cannot be read"),
        ({"engine_key_file": str(tmp_path / "two")}, "contains 2 keys; leave only one, on a line of its own"),
        ({"engine_ca_file": str(tmp_path / "two")}, "--engine-ca-file .*two: is not a PEM file of certificates"),
    ):
        with pytest.raises(SettingsError, match=told):
            open_fleet(bundle, ["http://a:1"], settings("http://a:1", **files))
