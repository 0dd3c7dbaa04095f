import pytest

from plaudit_client import settings
from plaudit_client.errors import InvalidArgument


@pytest.mark.parametrize(
    ("given", "urls"),
    [
        ("http://a:1/", ("http://a:1",)),
        ("http://a:1, https://b/rm/", ("http://a:1", "https://b/rm")),
        (["http://a", "http://b"], ("http://a", "http://b")),
        ("http://[::1]:80", ("http://[::1]:80",)),
    ],
)
def test_urls_are_one_several_or_separated_by_commas(given, urls):
    assert settings.resolve_urls(given) == urls


@pytest.mark.parametrize(
    "given", ["a:80", "ftp://a", "http://", "http://a:0", "http://a:65536", "http://a?x=1", "http://a#b", "/score"]
)
def test_a_url_that_is_no_base_url_is_refused(given):
    with pytest.raises(InvalidArgument, match=r"give one such as http://127\.0\.0\.1:8000"):
        settings.resolve_urls(given)


def test_no_url_at_all_is_refused():
    with pytest.raises(InvalidArgument, match="set PLAUDIT_URL"):
        settings.resolve_urls(None)


def test_a_password_in_a_url_is_refused_and_not_repeated():
    with pytest.raises(InvalidArgument, match="api_key") as caught:
        settings.resolve_urls("http://user:secret@a")
    assert "secret" not in str(caught.value)


def test_the_environment_is_used_where_no_argument_is_given(monkeypatch):
    monkeypatch.setenv("PLAUDIT_URL", "http://from-env")
    monkeypatch.setenv("PLAUDIT_API_KEY", "key-from-env\n")
    assert settings.resolve_urls(None) == ("http://from-env",)
    assert settings.resolve_urls("http://given") == ("http://given",)
    assert settings.resolve_headers(None)["Authorization"] == "Bearer key-from-env"
    assert settings.resolve_headers("given")["Authorization"] == "Bearer given"


@pytest.mark.parametrize(
    ("environment", "sent"),
    [
        ({"PLAUDIT_API_KEYS": "first, second"}, "first"),
        ({"PLAUDIT_API_KEYS": " ,second"}, "second"),
        ({"PLAUDIT_API_KEYS": "first", "PLAUDIT_API_KEY": "mine"}, "mine"),
        ({"PLAUDIT_API_KEYS": "first", "PLAUDIT_API_KEY": ""}, "first"),
    ],
)
def test_of_the_keys_that_a_service_takes_the_first_is_sent_unless_one_is_named(environment, sent, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert settings.resolve_headers(None)["Authorization"] == f"Bearer {sent}"


def test_without_a_key_there_is_no_authorization_header(monkeypatch):
    assert "Authorization" not in settings.resolve_headers(None)
    monkeypatch.setenv("PLAUDIT_API_KEYS", "a-key")
    assert "Authorization" not in settings.resolve_headers("")


@pytest.mark.parametrize("key", ["a\nb", "schlüssel"])
def test_a_key_that_cannot_stand_in_a_header_is_refused_and_not_repeated(key):
    with pytest.raises(InvalidArgument, match="printable ASCII") as caught:
        settings.resolve_headers(key)
    assert key not in str(caught.value)


@pytest.mark.parametrize("value", [0, -1.0, float("nan"), float("inf")])
def test_a_limit_must_be_positive_and_finite(value):
    with pytest.raises(InvalidArgument, match="timeout_s: got"):
        settings.check_positive("timeout_s", value)


@pytest.mark.parametrize(
    ("check", "message"),
    [
        (lambda: settings.resolve_urls(5), "url: got int; give a str"),
        (lambda: settings.resolve_urls([5]), "url: got list; give a str"),
        (lambda: settings.resolve_headers(5), "api_key: got int; give a str"),
        (lambda: settings.check_positive("timeout_s", "60"), "timeout_s: got '60'; give a number above 0"),
    ],
)
def test_an_argument_of_another_type_is_refused_by_name(check, message):
    with pytest.raises(InvalidArgument, match=message):
        check()
