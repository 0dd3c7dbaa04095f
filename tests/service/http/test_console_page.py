"""The console's page as it is sent."""

import re

import httpx2
import pytest

from plaudit_service.http.console.page import console_page


def test_the_page_needs_no_key_and_what_scores_on_its_path_does(serve, tiny_bundle, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("the-key\n")
    with serve(tiny_bundle(), flags=["--api-key-file", str(keys), "--dialects", "tei"]) as service:
        pages = [httpx2.get(f"{service.url}{path}") for path in ("/", "/console")]
        assert [page.status_code for page in pages] == [200, 200]
        assert pages[0].content == pages[1].content
        assert httpx2.head(f"{service.url}/console").status_code == 200
        assert httpx2.post(f"{service.url}/", json={"inputs": "good"}).status_code == 401
        assert httpx2.post(f"{service.url}/console").status_code == 401
        assert httpx2.get(f"{service.url}/info").status_code == 401


@pytest.mark.parametrize("path", ["/", "/console"])
def test_it_can_be_turned_off(serve, tiny_bundle, path):
    with serve(tiny_bundle(), flags=["--no-console"]) as service:
        assert httpx2.get(f"{service.url}{path}").status_code == 404


def test_nothing_is_loaded_from_elsewhere_and_no_page_can_frame_it(serve, tiny_bundle):
    with serve(tiny_bundle()) as service:
        page = httpx2.get(f"{service.url}/console")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    policy = dict(part.split(" ", 1) for part in page.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    assert policy["connect-src"] == "'self'"
    assert all(re.fullmatch(r"'sha256-[\w+/]{43}='", policy[name]) for name in ("script-src", "style-src"))
    assert page.headers["x-frame-options"] == "DENY"
    assert set(re.findall(r"https?://[^\"'`\s]+", page.text)) == {"http://www.w3.org/2000/svg"}  # a name of XML


def test_no_text_becomes_markup_and_nothing_is_kept_in_the_browser():
    script = console_page()[0].decode().split('<script type="module">')[1]
    for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "Storage", "cookie"):
        assert word not in script
