"""The service with a vLLM server behind it, by compose and by Kubernetes: nobody else reaches the server."""

import re
import shutil
import subprocess
from dataclasses import fields
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from plaudit_service.settings import Settings, environment_variable

DEPLOY = Path(__file__).parents[2] / "deploy"
KNOWN = {environment_variable(setting.name) for setting in fields(Settings)}


def composed(name):
    """A compose file with something in place of each variable."""
    return yaml.safe_load(re.sub(r"\$\{\w+:[?-][^}]*\}", "/set", (DEPLOY / name).read_text()))


COMPOSE, SERVICES = composed("compose.vllm.yaml"), composed("compose.yaml")["services"]


def flags(arguments):
    return dict(argument.removeprefix("--").split("=", 1) for argument in arguments)


@pytest.fixture(scope="module")
def pod():
    """The pod of the overlay."""
    command = ["kustomize", "build"] if shutil.which("kustomize") else ["kubectl", "kustomize"]
    if shutil.which(command[0]) is None:
        pytest.skip("neither kustomize nor kubectl is here to build the overlays")
    overlay = DEPLOY / "kubernetes" / "overlays" / "vllm"
    built = subprocess.run([*command, overlay], capture_output=True, text=True, check=True)
    documents = list(yaml.safe_load_all(built.stdout))
    for document in documents:
        if document["kind"] not in {"ScaledObject", "PodMonitor"}:
            kubernetes_validate.validate(document, "1.37", strict=True)
    (deployment,) = (document for document in documents if document["kind"] == "Deployment")
    return deployment["spec"]["template"]["spec"]


def test_compose_keeps_the_server_in_a_network_with_the_service_alone():
    server, service = COMPOSE["services"]["reward-model"], COMPOSE["services"]["plaudit"]
    assert "ports" not in server
    assert COMPOSE["networks"] == {"scoring": {"internal": True}}
    assert (server["networks"], service["networks"]) == (["scoring"], ["default", "scoring"])
    assert "scoring" not in {network for each in SERVICES.values() for network in each.get("networks", [])}
    hardened = SERVICES["plaudit"]
    assert {key: server[key] for key in ("read_only", "cap_drop", "security_opt", "init")} == {
        key: hardened[key] for key in ("read_only", "cap_drop", "security_opt", "init")
    }


def test_compose_and_kubernetes_name_settings_and_one_dtype(pod):
    by_name = {container["name"]: container for container in pod["containers"]}
    in_pod = {variable["name"]: variable.get("value") for variable in by_name["plaudit-serve"]["env"]}
    for environment, arguments in (
        (COMPOSE["services"]["plaudit"]["environment"], COMPOSE["services"]["reward-model"]["command"]),
        (in_pod, by_name["engine"]["args"]),
    ):
        assert set(environment) <= KNOWN
        assert environment["PLAUDIT_RUNTIME"] == "vllm"
        assert environment["PLAUDIT_ENGINE_DTYPE"] == flags(arguments)["dtype"]
        assert flags(arguments)["runner"] == "pooling"


def test_the_server_in_the_pod_listens_on_loopback_and_outlives_the_services_drain(pod):
    by_name = {container["name"]: container for container in pod["containers"]}
    service, engine = by_name["plaudit-serve"], by_name["engine"]
    variables = {variable["name"]: variable.get("value") for variable in service["env"]}
    asked = flags(engine["args"])
    assert asked["host"] == "127.0.0.1"
    assert variables["PLAUDIT_ENGINE_URL"] == f"http://127.0.0.1:{asked['port']}"
    assert asked["tensor-parallel-size"] == engine["resources"]["limits"]["nvidia.com/gpu"]
    drain_s = service["lifecycle"]["preStop"]["sleep"]["seconds"] + float(variables["PLAUDIT_DRAIN_TIMEOUT_S"])
    stop_s = engine["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert drain_s <= stop_s < pod["terminationGracePeriodSeconds"] - 10
    assert engine["securityContext"]["readOnlyRootFilesystem"] is True
