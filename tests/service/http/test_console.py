"""The console as a person uses it: a real browser on a real service."""

import asyncio
import json
import re
import threading
import time
from contextlib import contextmanager

import httpx2
import pytest
import uvicorn
from axe_playwright_python.sync_playwright import Axe
from chromium import launch
from playwright.sync_api import expect, sync_playwright
from running_app import HeldEngine, until

from plaudit_service.bundles.bundle import load_bundle
from plaudit_service.http import server
from plaudit_service.http.app import build_app
from plaudit_service.serving.service import Service
from plaudit_service.settings import Settings
from plaudit_service.testing import running_service, write_tiny_bundle

PATIENCE_MS = 20_000
expect.set_options(timeout=PATIENCE_MS)
HOSTILE = 'bad <img src=x onerror="document.title=1"><script>document.title=2</script>'
RIGHT_TO_LEFT = "good שלום عالم"


@pytest.fixture(scope="module")
def chromium():
    """The browser; `make test-browser` installs one where there is none. Its event loop runs as long as it does."""
    with sync_playwright() as playwright:
        browser = launch(playwright)
        if browser is None:
            pytest.skip("no Chromium is installed; `make test-browser` installs it, PLAUDIT_CHROMIUM names one")
        yield browser
        browser.close()


@pytest.fixture
def open_console(chromium):
    """Opens the console of a service; nothing may be asked of another host, and nothing may fail."""
    pages, failures, urls = [], [], []

    def open_page(url, *, path="console", ready=True, **options):
        context = chromium.new_context(viewport={"width": 1200, "height": 900}, **options)
        page = context.new_page()
        page.set_default_timeout(PATIENCE_MS)
        page.on(
            "console", lambda message: failures.append(message.text) if message.type in ("error", "warning") else None
        )
        page.on("pageerror", lambda error: failures.append(str(error)))
        page.on("request", lambda request: urls.append((url, request.url)))
        page.goto(f"{url}/{path}")
        if ready:
            expect(page.locator("#state")).to_have_text("Ready.")
        pages.append(page)
        return page

    yield open_page
    for page in pages:
        page.context.close()
    # An answer that is no 2xx is written to the browser's console by the browser itself.
    assert [text for text in failures if not text.startswith("Failed to load resource")] == []
    assert urls
    assert all(asked.startswith((url, "data:", "blob:" + url)) for url, asked in urls)


@pytest.fixture(scope="module")
def tiny_url(tmp_path_factory):
    """A service that the tests share."""
    with running_service(write_tiny_bundle(tmp_path_factory.mktemp("tiny") / "bundle")) as service:
        yield service.url


def write(page, prompt, *completions):
    page.fill("#prompt", prompt)
    areas = page.locator("#completions textarea")
    for index, text in enumerate(completions):
        if index == areas.count():
            page.click("#add-completion")
        areas.nth(index).fill(text)


def rows_of(page, place):
    """The cells of a table's body."""
    page.wait_for_selector(f"{place} tbody tr")
    return page.eval_on_selector_all(
        f"{place} tbody tr", "rows => rows.map(row => [...row.cells].map(cell => cell.innerText.trim()))"
    )


def post_text(url, text):
    return httpx2.post(f"{url}/score", json={"items": [{"text": text}]}, timeout=60)


def assert_accessible(page):
    results = Axe().run(page)
    assert results.violations_count == 0, results.generate_report()


NONE = "\N{EN DASH}"
SCORES = "#compare-results [aria-label=Scores]"
PAIRS = "#sweep-results [aria-label='Pairs, worst first']"


def test_completions_are_compared_by_score_difference_rank_tokens_and_status(serve, tiny_bundle, open_console):
    with serve(tiny_bundle(heads={"helpful": 1.0, "harmless": 0.0})) as service:
        page = open_console(service.url)
        write(page, "good ", "bad", "fine", "", "crash")
        page.click("#score")
        assert rows_of(page, SCORES) == [
            ["A", "3", "0.0000", "1.5000", "0.0000", "0.0000", "3", "ok"],
            ["B", "1", "1.5000", "0.0000", "1.5000", "3.0000", "3", "ok"],
            ["C", "2", "1.0000", "0.5000", "1.0000", "2.0000", "2", "ok"],
            ["D", NONE, NONE, NONE, NONE, NONE, "3", rows_of(page, SCORES)[3][-1]],
        ]
        assert rows_of(page, SCORES)[3][-1].startswith("failed; ")
        assert "tokenize" in page.inner_text("#compare-results")
        assert page.locator("#compare-results .scored").first.inner_text() == "good bad"


def test_two_to_eight_completions_can_be_written(tiny_url, open_console):
    page = open_console(tiny_url)
    assert page.locator("#completions button:visible").count() == 0
    write(page, "", *["good " * number for number in range(1, 9)])
    expect(page.locator("#add-completion")).to_be_hidden()
    page.click("[aria-label='Remove completion A']")
    page.locator("#completions textarea").nth(0).press("Control+Enter")
    assert [row[2] for row in rows_of(page, SCORES)] == [f"{number}.0000" for number in range(2, 9)]


def test_what_a_user_pastes_is_text_and_no_markup(tiny_url, open_console):
    page = open_console(tiny_url)
    write(page, "", HOSTILE, RIGHT_TO_LEFT)
    page.click("#score")
    assert [row[2] for row in rows_of(page, SCORES)] == ["-1.0000", "1.0000"]
    assert page.locator("#compare-results .scored").nth(0).inner_text() == HOSTILE
    assert page.locator("#compare-results .scored").nth(1).inner_text() == RIGHT_TO_LEFT
    page.click("#tab-sweep")
    page.fill("#rows", json.dumps({"prompt": HOSTILE, "chosen": RIGHT_TO_LEFT, "rejected": HOSTILE}))
    page.click("#sweep-start")
    assert HOSTILE in rows_of(page, PAIRS)[0][3]
    assert page.title() == "plaudit console"
    assert page.locator("main img, main script").count() == 0


def test_a_chat_is_scored_as_the_template_renders_it_and_has_values_at_every_token(serve, causal_bundle, open_console):
    with serve(causal_bundle) as service:
        page = open_console(service.url, color_scheme="dark")
        page.select_option("#form", "chat")
        page.click("#add-turn")
        page.locator("#turns select").nth(0).select_option("system")
        page.locator("#turns select").nth(1).select_option("user")
        page.locator("#turns textarea").nth(0).fill("Be brief.")
        page.locator("#turns textarea").nth(1).fill("How do I boil an egg?")
        write_completions = page.locator("#completions textarea")
        write_completions.nth(0).fill("Seven minutes.\nThen cold water.")
        write_completions.nth(1).fill("No.")
        page.click("summary")
        page.select_option("#along", "tokens")
        page.click("#score")
        scores = rows_of(page, SCORES)
        item = {
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "How do I boil an egg?"},
            ],
            "completions": ["Seven minutes.\nThen cold water.", "No."],
        }
        body = {"items": [item], "explain": True, "along": "tokens"}
        results = httpx2.post(f"{service.url}/score", json=body, timeout=60).json()["results"]
        assert [float(row[2]) for row in scores] == [round(result["score"], 4) for result in results]
        shown = page.locator("#compare-results .scored").nth(0)
        assert shown.text_content().replace("↵", "").replace("▪", "") == results[0]["text"]
        along = results[0]["along"]
        shown.focus()
        for _ in range(3):
            page.keyboard.press("ArrowRight")
        assert f"{along['scores'][2]:.4f}" in page.locator(".readout").nth(0).inner_text()
        assert_accessible(page)  # letters on coloured ground, too
        page.select_option("#along", "lines")
        page.click("#score")
        expect(page.locator(".scored").nth(0).locator(".high, .low")).to_have_count(2)


def test_a_process_reward_model_shows_the_value_of_each_step(serve, tiny_bundle, process_bundle, open_console):
    with serve(process_bundle, tiny_bundle(name="outcome")) as service:
        page = open_console(service.url)
        page.select_option("#model", "prm")
        write(page, "How many legs have three cats?\n", "Four each.\nSo 12.\n", "Three.\n")
        page.click("summary")
        page.select_option("#along", "steps")
        page.click("#score")
        expect(page.locator(".scored").nth(0).locator(".high, .low")).to_have_count(2)
        item = {"prompt": "How many legs have three cats?\n", "completion": "Four each.\nSo 12.\n"}
        body = {"model": "prm", "items": [item], "along": "steps"}
        (result,) = httpx2.post(f"{service.url}/score", json=body, timeout=60).json()["results"]
        page.locator(".scored").nth(0).focus()
        page.keyboard.press("ArrowRight")
        shown = page.locator(".readout").nth(0)
        expect(shown).to_contain_text("step 1")
        expect(shown).to_contain_text(f"{result['along']['scores'][0]:.4f}")
        page.select_option("#model", "outcome")
        expect(page.locator("#along")).to_have_value("none")
        expect(page.locator("#along [value=steps]")).to_be_disabled()


def test_a_combination_shows_its_parts_and_says_what_it_has_not(serve, tiny_bundle, open_console):
    bundles = [tiny_bundle(name="a"), tiny_bundle(name="b")]
    with serve(*bundles, flags=["--combine", "both=a+0.5*b"]) as service:
        page = open_console(service.url)
        page.select_option("#model", "both")
        write(page, "", "good", "bad")
        page.click("#score")
        assert [row[2:6] for row in rows_of(page, SCORES)] == [
            ["1.5000", "0.0000", "1.0000", "1.0000"],
            ["-1.5000", "3.0000", "-1.0000", "-1.0000"],
        ]
        page.click("summary")
        expect(page.locator("#along")).to_be_disabled()
        assert "Combinations" in page.inner_text("#along-note")


def test_a_key_is_asked_for_and_kept_in_memory_only(serve, tiny_bundle, open_console, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("the-key\n")
    with serve(tiny_bundle(), flags=["--api-key-file", str(keys)]) as service:
        page = open_console(service.url, ready=False)
        told = page.locator("#key-problem")
        for key, reason in (
            ("", ""),
            ("another", "at least one character"),
            ("\u200bkey", "refuses"),
            (" the-key\t", "ASCII"),
        ):
            page.wait_for_selector("#key-dialog[open]")
            expect(told).to_contain_text(reason)
            page.fill("#key", key)
            page.keyboard.press("Enter")
        expect(page.locator("#state")).to_have_text("Ready.")
        write(page, "", "good", "bad")
        page.click("#score")
        assert rows_of(page, SCORES)[0][2] == "1.0000"
        expect(page.locator("#docs-link")).to_be_hidden()
        stored = "() => localStorage.length + sessionStorage.length + document.cookie.length"
        assert page.evaluate(stored) == 0
        page.reload()
        page.wait_for_selector("#key-dialog[open]")


def test_a_full_service_says_so_and_the_request_is_tried_again_by_hand(tiny_bundle, open_console):
    with held_service(tiny_bundle(), max_queued_sequences=2) as (url, engine):
        page = open_console(url)
        others = []
        while 'plaudit_rejected_total{reason="queue-full"}' not in httpx2.get(f"{url}/metrics").text:
            text = "fine " * (1 + len(others))  # the same text would not wait twice
            others.append(threading.Thread(target=post_text, args=(url, text)))
            others[-1].start()
            assert len(others) < 100
            time.sleep(0.05)
        write(page, "", "good", "bad")
        page.click("#score")
        problem = page.locator("#compare-problem .problem")
        expect(problem).to_contain_text("429")
        page.click("#tab-sweep")
        page.fill("#rows", json.dumps({"chosen": "good", "rejected": "bad"}))
        page.click("#sweep-start")
        expect(page.locator("#sweep-problem .problem")).to_contain_text("429")
        engine.gate.set()
        for other in others:
            other.join()
        page.click("#sweep-problem button")
        expect(page.locator("#sweep-note")).to_have_text("1 of 1 lines scored.")
        page.click("#tab-compare")
        page.click("#compare-problem button")
        assert [row[2] for row in rows_of(page, SCORES)] == ["1.0000", "-1.0000"]
        expect(problem).to_have_count(0)


def test_a_service_that_is_gone_is_said_to_be_gone_once(serve, tiny_bundle, open_console):
    with serve(tiny_bundle()) as service:
        page = open_console(service.url)
    write(page, "", "good", "bad")
    page.click("#score")
    expect(page.locator("#compare-problem")).to_contain_text("could not be reached")
    expect(page.locator("#state")).to_contain_text("No answer")
    page.click("#tab-watch")
    problem = page.locator("#watch-problem .problem")
    problem.evaluate("problem => window.first = problem")
    for _ in range(2):
        with page.expect_event("requestfailed", lambda request: request.url.endswith("/metrics")):
            pass
    assert problem.evaluate("problem => problem === window.first")  # what is said once more is read aloud once more


def test_a_sweep_goes_on_when_the_service_is_back_and_not_when_it_is_another(serve, tiny_bundle, open_console):
    bundle, other = tiny_bundle(), tiny_bundle(more_words=["hotel"])
    scored = re.compile("[1-9].* of 5,000 lines scored")
    with serve(bundle) as service:
        page = open_console(service.url)
        page.click("#tab-sweep")
        page.set_input_files("#file", {"name": "it.jsonl", "mimeType": "text/plain", "buffer": pairs(5000).encode()})
        page.click("#sweep-start")
        expect(page.locator("#sweep-note")).to_have_text(scored)
    problem = page.locator("#sweep-problem .problem")
    gone = re.compile("shutting down|broke off")
    expect(problem).to_contain_text(gone)
    before = page.inner_text("#sweep-note")
    same_port = ["--port", service.url.rpartition(":")[2]]
    with serve(bundle, flags=same_port):
        expect(page.locator("#state")).to_have_text("Ready.")
        problem.locator("button").click()
        expect(page.locator("#sweep-note")).not_to_have_text(before)
    expect(problem).to_contain_text(gone)
    with serve(other, flags=same_port):
        expect(page.locator("#state")).to_have_text("Ready.")
        problem.locator("button").click()
        expect(problem).to_contain_text("Another fingerprint")
        expect(problem.locator("button")).to_have_count(0)


def test_an_answer_that_is_cut_short_is_asked_for_again_by_hand(tiny_url, open_console):
    page = open_console(tiny_url)
    page.route("**/score", lambda route: route.fulfill(content_type="application/json", body='{"results": ['))
    write(page, "", "good", "bad")
    page.click("#score")
    expect(page.locator("#compare-problem")).to_contain_text("not all of it")
    page.unroute("**/score")
    page.click("#compare-problem button")
    assert rows_of(page, SCORES)[0][2] == "1.0000"


def pairs(count):
    """Lines of which every fourth has its texts the wrong way round, with margins of 1, 2, 3 ..."""
    lines = []
    for number in range(count):
        better, worse = "good " * (1 + number % 3), "fine bad fine"
        chosen, rejected = (worse, better) if number % 4 == 0 else (better, worse)
        prompt = [{"role": "user", "content": "fine"}]
        if number % 2:
            lines.append({"prompt": "fine ", "chosen": chosen, "rejected": rejected, "id": number})
        else:
            answers = ([{"role": "assistant", "content": text}] for text in (chosen, rejected))
            lines.append(dict(zip(("chosen", "rejected"), (prompt + answer for answer in answers), strict=True)))
    return "\n".join(map(json.dumps, lines))


def test_a_thousand_pairs_are_swept_the_wrong_ones_first_and_saved(tiny_url, open_console):
    page = open_console(tiny_url)
    page.click("#tab-sweep")
    page.set_input_files("#file", {"name": "pairs.jsonl", "mimeType": "text/plain", "buffer": pairs(1000).encode()})
    page.evaluate(
        """() => { window.seen = new Set(); const bar = document.getElementById("sweep-progress");
        const look = () => { if (!bar.hidden) window.seen.add(bar.value); requestAnimationFrame(look); }; look(); }"""
    )
    page.click("#sweep-start")
    expect(page.locator("#sweep-note")).to_have_text("1,000 of 1,000 lines scored.")
    shown = page.inner_text("#sweep-results .cards")
    assert "75.0 %\nof 1,000 pairs right" in shown
    assert "null" not in page.inner_text("#sweep-results")
    # Margins are 1, 2, 3 in turn; a quarter of each is negative: the mean is (333*2 + 333*3 + 334) / 1000 / 2.
    worst = rows_of(page, PAIRS)
    assert [row[1] for row in worst] == ["-3.000"] * 50
    page.click("text=Show 50 more")
    assert rows_of(page, PAIRS)[-1][1] == "-2.000"
    assert page.locator("#sweep-results svg").count() == 2
    # The page was drawn while it worked: nobody had to wait for the end.
    assert page.evaluate("[...window.seen].filter(value => value > 0 && value < 1000).length") > 5
    with page.expect_download() as download:
        page.click("#export")
    saved = [json.loads(line) for line in download.value.path().read_text().splitlines()]
    assert len(saved) == 1000
    assert saved[1] == {
        "line": 2,
        "model": "tiny",
        "fingerprint": saved[0]["fingerprint"],
        "scores": [2.5, 0.5],
        "statuses": ["ok", "ok"],
        "num_tokens": [4, 5],
    }
    page.click("#sweep-results table button >> nth=0")
    assert [row[2] for row in rows_of(page, SCORES)] == ["0.5000", "3.5000"]


def test_a_sweep_can_be_cancelled_and_shows_what_it_has(tiny_url, open_console):
    page = open_console(tiny_url)
    page.click("#tab-sweep")
    page.set_input_files("#file", {"name": "pairs.jsonl", "mimeType": "text/plain", "buffer": pairs(5000).encode()})
    page.click("#sweep-start")
    expect(page.locator("#sweep-note")).to_have_text(re.compile("[1-9].* of 5,000 lines scored"))
    page.click("#sweep-cancel")
    expect(page.locator("#sweep-start")).to_be_enabled()
    done = int(page.inner_text("#sweep-note").split()[0].replace(",", ""))
    assert 0 < done < 5000
    assert f"of {done:,} pairs right" in page.inner_text("#sweep-results")


def test_groups_are_compared_by_what_they_are_worth_and_otherwise_only_by_length(tiny_url, open_console):
    groups = [
        {"prompt": "fine ", "completions": ["good", "bad", "awful"], "scores": [3, 2, 2]},
        {"messages": [{"role": "user", "content": "fine"}], "completions": ["good good", "good", "crash"]},
    ]
    page = open_console(tiny_url)
    page.click("#tab-sweep")
    page.fill("#rows", "\n".join(map(json.dumps, groups)))
    page.click("#sweep-start")
    assert [row[1] for row in rows_of(page, PAIRS)] == [
        "2.000",
        "3.250",
    ]
    shown = page.inner_text("#sweep-results")
    assert "100.0 %\nof 2 pairs right" in shown
    assert "1\ntexts without a score" in shown
    assert "1.00\ncorrelation of score and length within a line" in shown


def test_files_of_any_kind_are_swept_or_named(tiny_url, open_console):
    """Of what is read: byte order marks, line ends of Windows, NUL, half a character, a key twice, a long text."""
    lines = [
        '{"chosen": "good", "rejected": "bad"}',
        "",
        '{"chosen": "bad", "chosen": "good \\u0000 good", "rejected": "good"}',
        '{"chosen": "good \\ud800", "rejected": "bad"}',
        json.dumps({"prompt": "fine " * 20_000, "chosen": "good", "rejected": "bad"}),
    ]
    text = "\r\n".join(lines)
    page = open_console(tiny_url)
    page.click("#tab-sweep")

    def sweep(content):
        page.set_input_files("#file", {"name": "it.jsonl", "mimeType": "text/plain", "buffer": content})
        page.click("#sweep-start")

    for encoding in ("latin-1", "utf-16"):
        sweep('{"prompt": "é", "chosen": "good", "rejected": "bad"}'.encode(encoding))
        expect(page.locator("#rows-note")).to_contain_text("Nothing was scored: the file is not in UTF-8")
    sweep(text.encode("utf-8-sig"))
    expect(page.locator("#sweep-note")).to_have_text("4 of 4 lines scored.")
    assert [row[:2] for row in rows_of(page, PAIRS)] == [["3", "1.000"], ["1", "2.000"]]
    shown = page.inner_text("#sweep-results")
    assert "4\ntexts without a score" in shown
    assert "refused: " in shown
    assert "too_long: " in shown
    assert "null" not in shown
    page.fill("#rows", "\ufeff" + lines[0])  # what is written counts, and no more the file
    page.click("#sweep-start")
    expect(page.locator("#sweep-note")).to_have_text("1 of 1 lines scored.")


def test_a_pair_is_looked_at_as_it_was_swept(tiny_url, open_console):
    """Its carriage returns, roles and names included, which a form by itself would lose."""
    turns = [{"role": "tool", "content": "fine\r\n", "name": "clock"}]
    page = open_console(tiny_url)
    page.click("#tab-sweep")
    page.fill("#rows", json.dumps({"prompt": turns, "chosen": "good\r\n", "rejected": "bad"}))
    page.click("#sweep-start")
    with page.expect_request("**/score") as asked:
        page.click(f"{PAIRS} button")
    assert asked.value.post_data_json["items"] == [
        {"messages": turns, "completions": [completion]} for completion in ("good\r\n", "bad")
    ]
    assert "\N{SYMBOL FOR CARRIAGE RETURN}" in page.locator(".scored").nth(0).inner_text()
    page.locator("#completions textarea").nth(0).fill("fine")
    with page.expect_request("**/score") as asked:
        page.click("#score")
    assert asked.value.post_data_json["items"][0] == {"messages": turns, "completions": ["fine"]}


def test_of_too_many_pairs_some_lines_are_shown(tiny_url, open_console):
    size = 700
    group = {"prompt": "fine ", "completions": ["good"] * size, "scores": list(range(size))}
    page = open_console(tiny_url)
    page.click("#tab-sweep")
    page.fill("#rows", "\n".join([json.dumps(group)] * 3))
    page.click("#sweep-start")
    expect(page.locator("#sweep-results")).to_contain_text("the pairs of one line in 4")
    assert f"of {size * (size - 1) // 2:,} pairs right" in page.inner_text("#sweep-results")


def test_the_focus_stays_near_what_was_pressed(tiny_url, open_console):
    page = open_console(tiny_url)

    def press(selector, key="Enter"):
        page.locator(selector).focus()
        page.keyboard.press(key)

    def focused(selector):
        expect(page.locator(selector)).to_be_focused()

    press("#add-completion")
    focused("#completions .completion:nth-child(3) textarea")
    press("[aria-label='Remove completion A']")
    focused("#completions .completion:nth-child(1) textarea")
    page.select_option("#form", "chat")
    press("#turns button")
    focused("#add-turn")
    press("#add-turn")
    focused("#turns textarea")
    page.select_option("#form", "prompt")
    page.route("**/score", lambda _: None)  # it is never answered
    write(page, "", "good", "bad")
    press("#score")
    focused("#score")
    expect(page.locator("#score")).to_be_disabled()
    press("#compare-cancel")
    focused("#score")
    page.unroute("**/score")
    page.route("**/score", lambda route: route.abort())
    press("#score")
    press("#compare-problem button")
    focused("#compare-problem")
    page.unroute("**/score")
    press("#score")
    expect(page.locator("#compare-note")).to_have_text("Best: A, 1.0000.")
    press("#tab-compare", "ArrowRight")
    page.fill("#rows", pairs(80))
    press("#sweep-start")
    press("text=Show 50 more")
    focused(f"{PAIRS} tr:nth-child(51) button")
    press(f"{PAIRS} tr:nth-child(1) button")
    focused("#tab-compare")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "there is no line"),
        ("{", "line 1: no JSON"),
        ('{"prompt": "a"}\n\n{"chosen": 1, "rejected": 2}', "line 3: chosen and rejected are neither texts nor"),
        ('{"completions": ["a"], "prompt": "p", "scores": [1, 2]}', "line 1: scores is no list of one number"),
    ],
)
def test_a_line_that_is_no_pair_is_named_and_nothing_is_scored(tiny_url, open_console, text, reason):
    page = open_console(tiny_url)
    page.click("#tab-sweep")
    page.fill("#rows", text)
    page.on("request", lambda request: pytest.fail(f"asked for {request.url}"))
    page.click("#sweep-start")
    expect(page.locator("#rows-note")).to_contain_text(reason)


def test_the_service_is_shown_with_its_parity_its_limits_and_what_it_does(serve, tiny_bundle, open_console):
    with serve(tiny_bundle(), flags=["--max-sequences-per-request", "7"]) as service:
        page = open_console(service.url)
        page.click("#tab-watch")
        info = httpx2.get(f"{service.url}/info").json()
        assert rows_of(page, "#models")[0][-1] == info["models"][0]["fingerprint"]
        assert [int(row[0]) for row in rows_of(page, "#parity")] == [
            text["index"] for text in info["models"][0]["parity"]["texts"]
        ]
        assert ["max_sequences_per_request", "7"] in rows_of(page, "#limits")
        for _ in range(5):
            httpx2.post(f"{service.url}/score", json={"items": [{"text": "good"}, {"text": "fine bad"}]})
        expect(page.locator("#live")).to_contain_text("0.250 ± 0.750")
        expect(page.locator("#live")).to_contain_text("ms")


@pytest.mark.parametrize(("scheme", "width"), [("light", 1200), ("dark", 360)])
def test_every_view_is_accessible_and_fits_wide_and_narrow_light_and_dark(tiny_url, open_console, scheme, width):
    page = open_console(tiny_url, color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 800})
    write(page, "good ", "fine", "bad " * 40)
    page.locator("#completions textarea").nth(0).press("Control+Enter")
    rows_of(page, SCORES)
    page.focus("#tab-compare")
    page.keyboard.press("ArrowRight")
    page.fill("#rows", pairs(9))
    page.locator("#sweep-start").press("Enter")
    rows_of(page, PAIRS)
    for view in ("compare", "sweep", "watch"):
        page.click(f"#tab-{view}")
        assert_accessible(page)
        assert page.evaluate("document.documentElement.scrollWidth") <= width


@contextmanager
def held_service(bundle, **settings):
    """A service on a real socket in this process, whose engine waits for its gate: (url, engine)."""
    service = Service([load_bundle(bundle)], Settings(**{"engine_calls": 1, **settings}))
    listener = server.bind("127.0.0.1", 0)
    config = uvicorn.Config(build_app(service), log_config=None, lifespan="off")
    running = uvicorn.Server(config)
    started = threading.Event()

    async def main():
        service.start()
        await until(lambda: service.not_ready is None)
        started.set()
        await running.serve(sockets=[listener])
        await service.stop()

    thread = threading.Thread(target=lambda: asyncio.run(main()))
    thread.start()
    assert started.wait(60)
    (pipeline,) = service.pipelines.values()
    engine = pipeline.model.engine = HeldEngine(pipeline.model.engine)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", engine
    finally:
        engine.gate.set()
        running.should_exit = True
        thread.join()
