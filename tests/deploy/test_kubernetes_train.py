"""The overlay of a PPO run with an engine, built, against the schemas of Kubernetes."""

import shutil
import subprocess
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

OVERLAY = Path(__file__).parents[2] / "deploy" / "kubernetes" / "overlays" / "train"


@pytest.fixture(scope="module")
def job():
    command = ["kustomize", "build"] if shutil.which("kustomize") else ["kubectl", "kustomize"]
    if shutil.which(command[0]) is None:
        pytest.skip("neither kustomize nor kubectl is here to build the overlay")
    built = subprocess.run([*command, OVERLAY], capture_output=True, text=True, check=True)
    return yaml.safe_load(built.stdout)


@pytest.mark.parametrize("version", ["1.30", "1.37"])
def test_the_job_is_of_its_schema(job, version):
    kubernetes_validate.validate(job, version, strict=True)


def test_the_engine_listens_to_its_pod_alone_and_sees_the_weights_where_the_run_writes_them(job):
    """Whoever reaches vLLM's development routes can have it load any weights."""
    pod = job["spec"]["template"]["spec"]
    (engine,), (run,) = pod["initContainers"], pod["containers"]
    assert engine["restartPolicy"] == "Always"  # a sidecar
    assert "--host=127.0.0.1" in engine["args"]
    assert "ports" not in engine
    weights = [
        {m["mountPath"] for m in container["volumeMounts"] if m["name"] == "weights"} for container in (engine, run)
    ]
    assert weights == [{"/weights"}, {"/weights"}]


def test_no_container_runs_as_root_or_writes_its_root_or_gains_rights(job):
    pod = job["spec"]["template"]["spec"]
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    for container in pod["initContainers"] + pod["containers"]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        }
        assert container["resources"]["limits"]["memory"]
