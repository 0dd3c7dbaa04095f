"""The overlays of `deploy/kubernetes`, built, against the schemas of Kubernetes, KEDA and the Prometheus operator."""

import shutil
import subprocess
from dataclasses import fields
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from cloudcoil.models.keda.v1alpha1 import ScaledObject
from cloudcoil.models.prometheus_operator.v1 import PodMonitor

from plaudit_service.settings import Settings, environment_variable

KUBERNETES = Path(__file__).parents[2] / "deploy" / "kubernetes"
OVERLAYS = ["cpu", "gpu"]
# The oldest that has everything used here (preStop.sleep), and the newest whose schema is at hand.
VERSIONS = ["1.30", "1.37"]
CUSTOM = {"ScaledObject": ScaledObject, "PodMonitor": PodMonitor}


@pytest.fixture(scope="module", params=OVERLAYS)
def resources(request):
    """The documents of an overlay by kind and name."""
    command = ["kustomize", "build"] if shutil.which("kustomize") else ["kubectl", "kustomize"]
    if shutil.which(command[0]) is None:
        pytest.skip("neither kustomize nor kubectl is here to build the overlays")
    built = subprocess.run(
        [*command, KUBERNETES / "overlays" / request.param], capture_output=True, text=True, check=True
    )
    return {(document["kind"], document["metadata"]["name"]): document for document in yaml.safe_load_all(built.stdout)}


def only(resources, kind):
    (found,) = (document for (its, _), document in resources.items() if its == kind)
    return found


def pod(resources):
    return only(resources, "Deployment")["spec"]["template"]


def containers(resources):
    return pod(resources)["spec"]["initContainers"] + pod(resources)["spec"]["containers"]


def given(value):
    """A model's content without what was not given."""
    return value.model_dump(mode="json", by_alias=True, exclude_unset=True)


@pytest.mark.parametrize("version", VERSIONS)
def test_every_resource_is_of_its_schema(resources, version):
    for (kind, _), document in resources.items():
        if kind not in CUSTOM:
            kubernetes_validate.validate(document, version, strict=True)


def test_every_custom_resource_is_of_its_schema_and_has_no_unknown_field(resources):
    for (kind, _), document in resources.items():
        if kind in CUSTOM:
            assert given(CUSTOM[kind].model_validate(document)) == document


def test_all_kinds_are_there_and_in_one_namespace(resources):
    kinds = sorted(kind for kind, _ in resources)
    assert kinds == [
        "ConfigMap", "Deployment", "Namespace", "NetworkPolicy", "PodDisruptionBudget", "PodMonitor", "ScaledObject",
        "Service", "Service", "ServiceAccount",
    ]  # fmt: skip
    assert {document["metadata"].get("namespace", "plaudit") for document in resources.values()} == {"plaudit"}


def test_every_selector_selects_the_pods(resources):
    labels = pod(resources)["metadata"]["labels"].items()
    selectors = [only(resources, kind)["spec"]["selector"]["matchLabels"] for kind in
                 ("Deployment", "PodDisruptionBudget", "PodMonitor")]  # fmt: skip
    selectors += [document["spec"]["selector"] for (kind, _), document in resources.items() if kind == "Service"]
    selectors += [only(resources, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"]]
    assert len(selectors) == 6
    assert all(selector and selector.items() <= labels for selector in selectors)
    assert only(resources, "ScaledObject")["spec"]["scaleTargetRef"]["name"] == "plaudit-serve"


def test_no_container_runs_as_root_or_writes_its_root_or_gains_rights(resources):
    inside = pod(resources)["spec"]
    assert inside["automountServiceAccountToken"] is False
    assert inside["securityContext"]["runAsNonRoot"] is True
    assert inside["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in containers(resources):
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        }
        assert {"/tmp", "/bundles"} <= {mount["mountPath"] for mount in container["volumeMounts"]}  # noqa: S108
        assert container["resources"]["limits"]["memory"]


def test_the_pod_may_drain_before_it_is_killed(resources):
    (service,) = pod(resources)["spec"]["containers"]
    drain_s = next(float(v["value"]) for v in service["env"] if v["name"] == "PLAUDIT_DRAIN_TIMEOUT_S")
    stop_s = service["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod(resources)["spec"]["terminationGracePeriodSeconds"] >= stop_s + drain_s + 5


def test_it_is_alive_by_healthz_and_in_its_service_by_readyz(resources):
    (service,) = pod(resources)["spec"]["containers"]
    probes = {name: service[f"{name}Probe"]["httpGet"]["path"] for name in ("startup", "liveness", "readiness")}
    assert probes == {"startup": "/healthz", "liveness": "/healthz", "readiness": "/readyz"}
    assert service["startupProbe"]["periodSeconds"] * service["startupProbe"]["failureThreshold"] >= 600


def test_every_variable_is_a_setting_and_the_cpu_has_a_limit_that_threads_follow(resources):
    (service,) = pod(resources)["spec"]["containers"]
    known = {environment_variable(setting.name) for setting in fields(Settings)}
    assert {variable["name"] for variable in service["env"]} <= known - {"PLAUDIT_NUM_THREADS"}
    assert service["resources"]["limits"]["cpu"]


def test_the_init_container_asks_for_the_fingerprint_of_the_config_map(resources):
    (bundle,) = pod(resources)["spec"]["initContainers"]
    (service,) = pod(resources)["spec"]["containers"]
    assert bundle["image"] == service["image"]
    directory = service["args"][0]
    assert bundle["command"] + bundle["args"] == [
        "plaudit-fetch", "$(BUNDLE_SOURCE)", directory, "--fingerprint", "$(BUNDLE_FINGERPRINT)"
    ]  # fmt: skip
    config = only(resources, "ConfigMap")
    references = {v["name"]: v["valueFrom"].get("configMapKeyRef") for v in bundle["env"] if "valueFrom" in v}
    for variable, key in (("BUNDLE_SOURCE", "source"), ("BUNDLE_FINGERPRINT", "fingerprint")):
        assert references[variable] == {"name": config["metadata"]["name"], "key": key}
        assert config["data"][key]


def test_replicas_go_only_after_a_queue_that_stayed_short_for_longer_than_a_ppo_step(resources):
    """An hour is the most that Kubernetes allows; a step of PPO takes minutes."""
    spec = only(resources, "ScaledObject")["spec"]
    behavior = spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    assert 900 <= behavior["scaleDown"]["stabilizationWindowSeconds"] <= 3600
    assert behavior["scaleUp"]["stabilizationWindowSeconds"] == 0
    assert "plaudit_queued_tokens" in spec["triggers"][0]["metadata"]["query"]
    assert "replicas" not in only(resources, "Deployment")["spec"]


def test_the_node_gives_the_device_to_the_pods_that_compute_on_it(resources):
    (service,) = pod(resources)["spec"]["containers"]
    device = {v["name"]: v.get("value") for v in service["env"]}.get("PLAUDIT_DEVICE")
    assert (device == "cuda") == ("nvidia.com/gpu" in service["resources"]["limits"])
    assert service["image"].endswith("-cuda") == (device == "cuda")
