"""The pages of docs/trainers against a real service: what they tell to copy works. verl's is run by test_verl."""

import asyncio
import json
import re
import shlex
import subprocess
from pathlib import Path

import httpx2
import pytest
import yaml

from plaudit_client.adapters.trl import reward_function
from plaudit_service import Scorer
from plaudit_service.http.dialects.endpoint import DIALECTS
from plaudit_service.testing import score_by_hand

PAGES = {page.stem: page.read_text() for page in (Path(__file__).parents[2] / "docs" / "trainers").glob("*.md")}
NUMBERS = {
    "openrlhf": lambda answer: answer["rewards"],
    "llamafactory": lambda answer: answer["scores"],
    "vllm": lambda answer: answer["data"][0]["probs"],
    "slime": lambda answer: [answer],
    "tei": lambda answer: [answer[0]["score"]],
    "sglang": lambda answer: answer["embedding"],
    "nemo-gym": lambda answer: [answer["reward"]],
}


def blocks(page, language):
    return re.findall(rf"```{language}\n(.*?)```", PAGES[page], flags=re.DOTALL)


def served_flags(page):
    """The flags that a page starts the service with."""
    (command,) = re.findall(r"^plaudit-serve BUNDLE (.*)$", "\n".join(blocks(page, "bash")), flags=re.MULTILINE)
    return shlex.split(command)


@pytest.mark.parametrize("dialect", sorted(DIALECTS))
def test_the_commands_of_a_dialects_page_give_the_score(serve, tiny_bundle, dialect):
    command = re.findall(r"curl -s http.*?'\{.*?\}'", PAGES[dialect])[0]  # a second one asks for another thing
    asked = command.replace("TEXT", "good fine").replace('"P"', '"good"').replace('"R"', '" fine"')
    with serve(tiny_bundle(), flags=served_flags(dialect)) as service:
        asked = asked.replace("http://127.0.0.1:8000", service.url)
        answer = subprocess.run(shlex.split(asked), capture_output=True, text=True, check=True).stdout
    assert NUMBERS[dialect](json.loads(answer)) == [score_by_hand("good fine")]


@pytest.mark.parametrize("dialect", sorted(DIALECTS))
def test_every_url_of_a_dialects_page_leads_to_the_dialect(dialect):
    paths = set(re.findall(r"http://127\.0\.0\.1:8000(/[\w/]*)", PAGES[dialect]))
    assert paths
    assert paths <= {route.path for route in DIALECTS[dialect]}
    assert all(f"`{route.path}`" in PAGES[dialect] or route.path in paths for route in DIALECTS[dialect])


def test_the_overview_names_every_dialect_with_its_route():
    for name, routes in DIALECTS.items():
        assert f"`--dialects {name}`" in PAGES["README"]
        assert all(f"`{route.path}`" in PAGES["README"] for route in routes if route.scores)


CHAT = [{"role": "user", "content": "bad"}]
CHATS = {
    "openrlhf": {"query": ["<|im_start|>badawful<|im_end|>"], "prompts": ["<|im_start|>bad"], "labels": [CHAT]},
    "vllm": {"messages": [*CHAT, {"role": "assistant", "content": "awful"}], "use_activation": False},
    "slime": {"prompt": CHAT, "response": "awful<|im_end|>"},
}


@pytest.mark.parametrize("dialect", CHATS)
def test_a_chat_is_rendered_by_the_reward_models_own_template_or_refused(serve, tiny_bundle, dialect):
    path, flags = DIALECTS[dialect][0].path, ["--dialects", dialect]
    with serve(tiny_bundle(), flags=flags) as service:
        answer = httpx2.post(service.url + path, json=CHATS[dialect])
        assert NUMBERS[dialect](answer.json()) == [score_by_hand("bad awful")]
    with serve(tiny_bundle(chat_template=None), flags=flags) as service:
        refused = httpx2.post(service.url + path, json=CHATS[dialect])
        assert (refused.status_code, refused.json()["type"]) == (422, "urn:plaudit:invalid-request")
        assert "has no chat template" in refused.json()["detail"]


def test_llamafactorys_settings_are_yaml():
    (block,) = blocks("llamafactory", "yaml")
    url = f"http://127.0.0.1:8000{DIALECTS['llamafactory'][0].path}"
    assert yaml.safe_load(block) == {"reward_model_type": "api", "reward_model": url}


def test_the_block_about_the_hubs_client_prints_the_score(serve, tiny_bundle, capsys):
    (block,) = blocks("tei", "python")
    with serve(tiny_bundle(), flags=served_flags("tei")) as service:
        exec(block.replace("http://127.0.0.1:8000", service.url), {})  # noqa: S102  our own page
    assert capsys.readouterr().out == "LABEL_0 1.5\n"


def test_nemo_gyms_configuration_is_yaml():
    (block,) = blocks("nemo-gym", "yaml")
    server = yaml.safe_load(block)["plaudit"]["resources_servers"]["plaudit"]
    assert (server["host"], server["port"]) == ("127.0.0.1", 8000)


def test_the_block_about_trl_makes_a_reward_function(serve, tiny_bundle):
    (block,) = blocks("trl", "python")
    names = {}
    with serve(tiny_bundle()) as service:
        exec(block.replace("http://127.0.0.1:8000", service.url), names)  # noqa: S102  our own page
        assert asyncio.run(names["reward"](["good"], [" fine"])) == [1.5]
    assert names["reward_function"] is reward_function


def test_own_score_of_the_check_is_what_the_service_answers(causal_bundle):
    names = {}
    (block,) = blocks("README", "python")
    exec(block, names)  # noqa: S102  our own page
    (own,) = names["own_score"](causal_bundle.parent / "checkpoint", "hello numbers")
    (served,) = Scorer(causal_bundle).score([{"text": "hello numbers"}], raw=True)
    assert served.score == pytest.approx(own, abs=1e-5)
