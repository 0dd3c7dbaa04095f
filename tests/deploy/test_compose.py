"""`deploy/compose.yaml` against the compose specification, and what it promises for every container."""

import re
from pathlib import Path

import compose_spec
import pytest
import yaml

DEPLOY = Path(__file__).parents[2] / "deploy"
VARIABLE = re.compile(r"\$\{(?P<name>\w+)(?P<rule>:[?-])(?P<text>[^}]*)\}")


def set_variable(match):
    return match["text"] if match["rule"] == ":-" else f"/set/{match['name']}"


TEXT = (DEPLOY / "compose.yaml").read_text()
COMPOSE = yaml.safe_load(VARIABLE.sub(set_variable, TEXT))
SERVICES = COMPOSE["services"]


def test_the_file_is_of_the_compose_specification():
    resolved = {key: value for key, value in COMPOSE.items() if not key.startswith("x-")}
    compose = compose_spec.PyCompose.from_yaml(yaml.safe_dump(resolved))
    compose.validate()
    assert set(compose.service_names()) == {"plaudit", "prometheus", "grafana", "ppo", "engine"}


def test_the_specification_refuses_an_option_that_it_does_not_know():
    with pytest.raises(ValueError, match="read_onyl"):
        compose_spec.PyCompose.from_yaml("services: {a: {image: b, read_onyl: true}}")


@pytest.mark.parametrize("name", SERVICES)
def test_no_container_can_write_its_root_or_gain_rights(name):
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))


@pytest.mark.parametrize("name", ["plaudit", "prometheus", "grafana", "engine"])
def test_what_others_wait_for_has_a_health_check(name):
    assert SERVICES[name]["healthcheck"]["test"][0] == "CMD"


def test_images_that_are_not_built_here_are_pinned_to_a_version():
    pulled = [service["image"] for service in SERVICES.values() if "build" not in service]
    assert all(re.search(r":v?\d+\.\d+\.\d+$", image) for image in pulled)


def test_every_variable_is_in_the_example_and_no_secret_has_a_default():
    texts = [TEXT, (DEPLOY / "compose.vllm.yaml").read_text()]
    variables = {match["name"]: match["rule"] for text in texts for match in VARIABLE.finditer(text)}
    example = (DEPLOY / "compose.env.example").read_text()
    assert set(re.findall(r"^(\w+)=$", example, re.MULTILINE)) == set(variables)
    assert variables["PLAUDIT_API_KEY"] == variables["GRAFANA_ADMIN_PASSWORD"] == ":?"


def test_the_service_may_drain_before_it_is_killed():
    service = SERVICES["plaudit"]
    grace_s = int(service["stop_grace_period"].removesuffix("s"))
    assert grace_s >= float(service["environment"]["PLAUDIT_DRAIN_TIMEOUT_S"]) + 5


def test_every_build_target_is_one_of_the_dockerfile():
    targets = set(re.findall(r"^FROM .* AS (\S+)$", (DEPLOY.parent / "Dockerfile").read_text(), re.MULTILINE))
    assert {service["build"]["target"] for service in SERVICES.values() if "build" in service} <= targets


def test_every_file_that_is_mounted_is_in_the_repository():
    mounted = [volume.split(":")[0] for service in SERVICES.values() for volume in service["volumes"] if ":" in volume]
    missing = [path for path in mounted if path.startswith("./") and not (DEPLOY / path).exists()]
    assert not missing


def test_nobody_but_the_run_reaches_the_engine_and_it_sees_the_runs_directory_at_the_same_path():
    """Whoever reaches vLLM's development routes can have it load any weights."""
    engine, run = SERVICES["engine"], SERVICES["ppo"]
    assert "ports" not in engine
    assert COMPOSE["networks"]["engine"] == {"internal": True}
    assert [name for name, service in SERVICES.items() if "engine" in service.get("networks", [])] == ["ppo", "engine"]
    assert engine["networks"] == ["engine"]
    assert engine["volumes"][0] == run["volumes"][0] | {"read_only": True}
