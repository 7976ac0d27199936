"""The manifests under cluster/kuberay: accepted by KubeRay, and agreeing with each other, the CLI, Serve and the settings."""

import copy
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from seminar.cli import parse_job_args
from seminar.config import Settings, load_settings
from tests.kuberay import clusters, number, pods, problems
from workflows.__main__ import JOBS

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "cluster/kuberay"
OPTION = ROOT / "cluster/kuberay-gcs-redis"
HISTORIES = ROOT / "cluster/kuberay-history-redis"
FILES = sorted(
    path
    for path in [*FOLDER.glob("*.yaml"), *OPTION.glob("*.yaml"), HISTORIES / "redis.yaml"]
    if path.name != "kustomization.yaml"
)
MANIFESTS: dict[str, dict[str, Any]] = {
    f"{path.name}: {document['kind']} {document['metadata']['name']}": document
    for path in FILES
    for document in yaml.safe_load_all(path.read_text())
}
CLUSTERS = [cluster for manifest in MANIFESTS.values() for cluster in clusters(manifest)]
PODS = [pod for manifest in MANIFESTS.values() for pod in pods(manifest)]
CONTAINERS = [container for pod in PODS for container in pod["containers"]]


def _manifest(file: str, kind: str) -> dict[str, Any]:
    (found,) = [manifest for name, manifest in MANIFESTS.items() if name.startswith(f"{file}: {kind} ")]
    return found


BATCH = _manifest("raycluster.yaml", "RayCluster")
SERVICE = _manifest("rayservice.yaml", "RayService")
REFRESH = _manifest("rayjob-refresh.yaml", "RayJob")
CRON = _manifest("nightly-cronjob.yaml", "CronJob")
SETTINGS = load_settings(ROOT / "cluster/settings.toml")


def _port(container: dict[str, Any], name: str) -> int:
    (port,) = [port["containerPort"] for port in container["ports"] if port["name"] == name]
    return port


def _named(kind: str) -> set[str]:
    return {manifest["metadata"]["name"] for manifest in MANIFESTS.values() if manifest["kind"] == kind}


@pytest.mark.parametrize("name", MANIFESTS)
def test_manifest_is_accepted_by_the_operator(name: str) -> None:
    assert problems(MANIFESTS[name]) == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("spec", "rayverson"), "2.60.0"),
        (("spec", "authOptions", "mode"), "none"),
        (("spec", "autoscalerOptions", "upscalingMode"), "Fast"),
        (("spec", "workerGroupSpecs", 0, "replicas"), 99),
        (("spec", "workerGroupSpecs", 0, "groupName"), "gpu"),
        (("spec", "workerGroupSpecs", 0, "template", "spec", "restartPolicy"), "OnFailure"),
        (("spec", "headGroupSpec", "rayStartParams", "num-cpus"), 0),
        (("spec", "headGroupSpec", "template", "spec", "containers", 0, "resources", "limits", "memory"), "8 GB"),
        (("metadata", "name"), "Seminar_Batch"),
        (("kind",), "RayClusters"),
    ],
)
def test_a_mistake_in_a_manifest_is_found(path: tuple[Any, ...], value: Any) -> None:
    broken = copy.deepcopy(BATCH)
    target: Any = broken
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = value
    assert problems(broken)


@pytest.mark.parametrize("job", JOBS)
def test_every_job_has_a_manifest_whose_command_the_cli_accepts(job: str) -> None:
    manifest = _manifest(f"rayjob-{job}.yaml", "RayJob")
    assert manifest["metadata"]["name"] == f"seminar-{job}"
    assert manifest["spec"]["clusterSelector"] == {"ray.io/cluster": BATCH["metadata"]["name"]}
    settings = _settings_of(manifest["spec"]["entrypoint"], job)
    assert settings == SETTINGS


def test_manifests_exist_for_known_jobs_only() -> None:
    assert {path.stem.removeprefix("rayjob-") for path in FOLDER.glob("rayjob-*.yaml")} == set(JOBS)


def test_ray_is_the_pinned_version_everywhere() -> None:
    pinned = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if re.match(r"[\w-]+==", line))
    assert {cluster["rayVersion"] for cluster in CLUSTERS} == {pinned["ray"]}


def test_images_carry_the_release_of_the_package() -> None:
    project = (ROOT / "pyproject.toml").read_text()
    version = re.search(r'^version = "(.+)"', project, re.MULTILINE)
    assert version is not None
    images = {container["image"] for container in CONTAINERS}
    assert images == {f"seminar-cpu:{version[1]}", f"seminar-gpu:{version[1]}", "redis:7.4.0"}
    assert yaml.safe_load((ROOT / "cluster/ray-up.yaml").read_text())["docker"]["image"] == f"seminar-cpu:{version[1]}"


def test_ports_agree_between_pods_serve_settings_and_launcher() -> None:
    serve, dashboard, metrics = 8000, 8265, 8080
    assert Settings().serve.port == serve
    http = yaml.safe_load(SERVICE["spec"]["serveConfigV2"])["http_options"]
    assert (http["host"], http["port"]) == ("0.0.0.0", serve)
    for cluster in CLUSTERS:
        groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
        assert {_port(group["template"]["spec"]["containers"][0], "metrics") for group in groups} == {metrics}
        assert {group["rayStartParams"]["metrics-export-port"] for group in groups} == {str(metrics)}
        assert _port(groups[0]["template"]["spec"]["containers"][0], "dashboard") == dashboard
    for group in SERVICE["spec"]["rayClusterConfig"]["workerGroupSpecs"]:
        assert _port(group["template"]["spec"]["containers"][0], "serve") == serve
    name = SERVICE["metadata"]["name"]
    assert SETTINGS.refresh.endpoint == f"http://{name}-serve-svc:{serve}"
    assert SETTINGS.refresh.dashboard == f"http://{name}-head-svc:{dashboard}"


def test_head_services_do_not_collide() -> None:
    names = [f"{name}-head-svc" for kind in ("RayCluster", "RayService") for name in _named(kind)]
    assert len(set(names)) == len(names) == 2
    assert urlsplit(SETTINGS.refresh.dashboard or "").hostname in names


def test_requests_stay_within_limits() -> None:
    for container in CONTAINERS:
        requests, limits = container["resources"]["requests"], container["resources"]["limits"]
        assert requests.keys() == limits.keys()
        assert all(number(requests[key]) <= number(limits[key]) for key in requests), container["name"]
    # Ray counts a pod's limits as its resources; a request below would let the pod be placed where they are not there.
    for cluster in CLUSTERS:
        for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
            resources = group["template"]["spec"]["containers"][0]["resources"]
            assert resources["requests"] == resources["limits"]


def test_volumes_are_declared_mounted_and_claimed() -> None:
    claims = _named("PersistentVolumeClaim")
    for pod in PODS:
        declared = {volume["name"] for volume in pod.get("volumes", [])}
        mounted = {mount["name"] for container in pod["containers"] for mount in container.get("volumeMounts", [])}
        assert mounted - {"data"} == declared
        claimed = {
            volume["persistentVolumeClaim"]["claimName"] for volume in pod.get("volumes", []) if "persistentVolumeClaim" in volume
        }
        assert claimed <= claims
    mounts = {
        mount["mountPath"]
        for cluster in CLUSTERS
        for pod in [cluster["headGroupSpec"]["template"]["spec"]]
        for mount in pod["containers"][0]["volumeMounts"]
    }
    assert "/data" in mounts
    assert SETTINGS.workdir.is_relative_to("/data")


def test_service_account_may_do_what_the_nightly_script_does() -> None:
    account = CRON["spec"]["jobTemplate"]["spec"]["template"]["spec"]["serviceAccountName"]
    role, binding = _manifest("nightly-cronjob.yaml", "Role"), _manifest("nightly-cronjob.yaml", "RoleBinding")
    assert _named("ServiceAccount") == {account}
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": account}]
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    assert role["rules"] == [{"apiGroups": ["ray.io"], "resources": ["rayjobs"], "verbs": ["create", "get"]}]


def test_batch_and_service_share_the_token_that_the_swap_needs() -> None:
    assert {cluster["authOptions"]["secretName"] for cluster in CLUSTERS} == {"seminar-ray-token"}


def test_a_night_ends_before_the_date_changes() -> None:
    spec = CRON["spec"]
    minute, hour = (int(field) for field in spec["schedule"].split()[:2])
    command = CRON["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"][0]["command"]
    attempts = int(command[command.index("--attempts") + 1])
    longest = spec["jobTemplate"]["spec"]["activeDeadlineSeconds"]
    assert attempts * REFRESH["spec"]["activeDeadlineSeconds"] <= longest
    assert hour * 3600 + minute * 60 + spec["startingDeadlineSeconds"] + longest < 24 * 3600
    assert spec["timeZone"] == "Etc/UTC"


def test_alpha_schedule_runs_the_same_job_at_the_same_time() -> None:
    alpha = _manifest("nightly-raycronjob.yaml", "RayCronJob")["spec"]
    assert alpha["jobTemplate"] == REFRESH["spec"]
    assert (alpha["schedule"], alpha["timeZone"]) == (CRON["spec"]["schedule"], CRON["spec"]["timeZone"])


def test_start_parameters_are_options_of_ray_start() -> None:
    from ray.scripts.scripts import start

    known = {option.removeprefix("--") for parameter in start.params for option in parameter.opts}
    for cluster in CLUSTERS:
        for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
            assert group["rayStartParams"].keys() <= known


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="needs kubectl, which renders without a cluster")
@pytest.mark.parametrize(("folder", "surviving"), [(FOLDER, 0), (OPTION, 2), (HISTORIES, 0)])
def test_kustomize_renders_valid_manifests(folder: Path, surviving: int) -> None:
    rendered = list(yaml.safe_load_all(_kustomize(folder)))
    assert [problems(manifest) for manifest in rendered] == [[]] * len(rendered)
    assert sum("gcsFaultToleranceOptions" in cluster for manifest in rendered for cluster in clusters(manifest)) == surviving


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="needs kubectl, which renders without a cluster")
def test_an_overlay_moves_every_image_to_another_registry(tmp_path: Path) -> None:
    shutil.copytree(FOLDER, tmp_path / "kuberay")
    moved = [
        {"name": name, "newName": f"registry.example.com/ml/{name}", "newTag": "7"} for name in ("seminar-cpu", "seminar-gpu")
    ]
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump({"resources": ["kuberay"], "images": moved}))
    rendered = yaml.safe_load_all(_kustomize(tmp_path))
    images = {container["image"] for manifest in rendered for pod in pods(manifest) for container in pod["containers"]}
    assert images == {"registry.example.com/ml/seminar-cpu:7", "registry.example.com/ml/seminar-gpu:7"}


def _kustomize(folder: Path) -> str:
    done = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _settings_of(entrypoint: str, job: str) -> Settings:
    python, flag, package, name, *arguments = shlex.split(entrypoint)
    assert (python, flag, package, name) == ("python", "-m", "workflows", job)
    # /app is the image's copy of the repository (Dockerfile, checked in test_cluster_image.py).
    return parse_job_args([argument.replace("/app/", f"{ROOT}/") for argument in arguments])
