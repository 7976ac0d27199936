"""The RayServices and the Serve configs they embed: one content, accepted by Serve, placed where histories and CPUs are."""

import importlib
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.serve.config import AutoscalingConfig
from ray.serve.schema import DeploymentSchema, ServeDeploySchema

from seminar.config import load_settings
from serve.options import Options
from tests.kuberay import number

ROOT = Path(__file__).resolve().parent.parent
TOPOLOGIES = {"fused": "rayservice.yaml", "split": "rayservice-split.yaml"}
SERVICES = {name: yaml.safe_load((ROOT / "cluster/kuberay" / file).read_text()) for name, file in TOPOLOGIES.items()}
HISTORY = "history"


def _config(topology: str) -> dict[str, Any]:
    return yaml.safe_load((ROOT / f"serve/{topology}.yaml").read_text())


def _embedded(topology: str) -> dict[str, Any]:
    return yaml.safe_load(SERVICES[topology]["spec"]["serveConfigV2"])


def _groups(topology: str) -> list[dict[str, Any]]:
    return SERVICES[topology]["spec"]["rayClusterConfig"]["workerGroupSpecs"]


def _deployments(topology: str) -> dict[str, dict[str, Any]]:
    (application,) = _embedded(topology)["applications"]
    return {deployment["name"]: deployment for deployment in application["deployments"]}


def _mounts(group: dict[str, Any]) -> dict[str, str]:
    return {mount["mountPath"]: mount["name"] for mount in group["template"]["spec"]["containers"][0]["volumeMounts"]}


def _cpus(group: dict[str, Any]) -> float:
    return number(group["template"]["spec"]["containers"][0]["resources"]["limits"]["cpu"]) * group["maxReplicas"]


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_serve_accepts_the_config(topology: str) -> None:
    for config in (_config(topology), _embedded(topology)):
        schema = ServeDeploySchema.model_validate(config)
        (application,) = schema.applications
        for deployment in config["applications"][0]["deployments"]:
            # The schema lets unknown keys of a deployment and contradictory bounds of its autoscaling pass.
            assert deployment.keys() <= DeploymentSchema.model_fields.keys()
            assert deployment["autoscaling_config"].keys() <= AutoscalingConfig.model_fields.keys()
            AutoscalingConfig(**deployment["autoscaling_config"])
        module, name = application.import_path.split(":")
        assert callable(getattr(importlib.import_module(module), name))
        assert Options.parse(application.args).topology == topology


def test_serve_would_refuse_a_wrong_value() -> None:
    config = _config("fused")
    config["applications"][0]["deployments"][0]["max_ongoing_requests"] = "many"
    with pytest.raises(ValueError, match="max_ongoing_requests"):
        ServeDeploySchema.model_validate(config)


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_no_ingress_names_a_router_which_serve_refuses_behind_haproxy(topology: str) -> None:
    assert "request_router_config" not in _deployments(topology)["Ingress"]


def test_fused_service_embeds_serve_fused_yaml() -> None:
    assert _embedded("fused") == _config("fused")


def test_split_service_embeds_serve_split_yaml_with_its_ingress_tied_to_the_histories() -> None:
    expected = _config("split")
    ingress = expected["applications"][0]["deployments"][0]
    assert ingress["name"] == "Ingress"
    ingress["ray_actor_options"]["resources"] = {HISTORY: 0.01}
    assert _embedded("split") == expected


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_one_pod_alone_holds_the_histories(topology: str) -> None:
    (application,) = _embedded(topology)["applications"]
    holders = [group for group in _groups(topology) if application["args"]["history"] in _mounts(group)]
    assert [(group["minReplicas"], group["replicas"], group["maxReplicas"]) for group in holders] == [(1, 1, 1)]
    claims = {
        claim["metadata"]["name"]: claim for claim in yaml.safe_load_all((ROOT / "cluster/kuberay/storage.yaml").read_text())
    }
    volumes = {
        volume["name"]: volume["persistentVolumeClaim"]["claimName"] for volume in holders[0]["template"]["spec"]["volumes"]
    }
    claim = claims[volumes[_mounts(holders[0])[application["args"]["history"]]]]
    assert claim["spec"]["accessModes"] == ["ReadWriteOncePod"]
    # A second cluster beside the first would wait for that disk for ever.
    assert SERVICES[topology]["spec"]["upgradeStrategy"]["type"] == "None"


def test_ingress_can_only_run_where_the_histories_are() -> None:
    assert len(_groups("fused")) == 1
    holder, stages = _groups("split")
    assert holder["resources"] == {HISTORY: "1"}
    assert HISTORY not in stages.get("resources", {})
    ingress = _deployments("split")["Ingress"]
    share = ingress["ray_actor_options"]["resources"][HISTORY]
    assert 0 < share * ingress["autoscaling_config"]["max_replicas"] <= 1


def test_pods_have_room_for_every_replica_that_serve_may_start() -> None:
    wanted = {
        topology: {
            name: deployment["autoscaling_config"]["max_replicas"] * deployment["ray_actor_options"]["num_cpus"]
            for name, deployment in _deployments(topology).items()
        }
        for topology in TOPOLOGIES
    }
    assert wanted["fused"]["Ingress"] <= _cpus(_groups("fused")[0])
    holder, stages = _groups("split")
    assert wanted["split"]["Ingress"] <= _cpus(holder)
    assert wanted["split"]["GSU"] + wanted["split"]["ESU"] <= _cpus(stages)


def test_pods_of_the_split_service_come_and_go_with_the_load() -> None:
    cluster = SERVICES["split"]["spec"]["rayClusterConfig"]
    assert cluster["enableInTreeAutoscaling"]
    assert _groups("split")[1]["minReplicas"] < _groups("split")[1]["maxReplicas"]


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_service_reads_the_artefacts_that_jobs_write(topology: str) -> None:
    (application,) = _embedded(topology)["applications"]
    workdir = load_settings(ROOT / "cluster/settings.toml").workdir
    assert application["args"]["workdir"] == str(workdir)
    cluster = SERVICES[topology]["spec"]["rayClusterConfig"]
    for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        assert _mounts(group)["/data"] == "workdir"


def test_every_pod_of_both_services_has_the_same_serve_environment() -> None:
    environments = [
        group["template"]["spec"]["containers"][0]["env"]
        for service in SERVICES.values()
        for group in [
            service["spec"]["rayClusterConfig"]["headGroupSpec"],
            *service["spec"]["rayClusterConfig"]["workerGroupSpecs"],
        ]
    ]
    secret = {"name": "seminar-service-token", "key": "token"}
    expected = [
        {"name": "RAY_SERVE_ENABLE_HA_PROXY", "value": "1"},
        {"name": "RAY_SERVE_THROUGHPUT_OPTIMIZED", "value": "1"},
        {"name": "SEMINAR_TOKEN", "valueFrom": {"secretKeyRef": secret}},
    ]
    assert environments == [expected] * 5
    (batch,) = yaml.safe_load_all((ROOT / "cluster/kuberay/raycluster.yaml").read_text())
    drivers = batch["spec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["env"]
    optional = {"secretKeyRef": {**secret, "optional": True}}
    assert drivers == [{"name": "SEMINAR_TOKEN", "valueFrom": optional}], "the refresh asks the service"
