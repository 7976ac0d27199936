"""Offline check of manifests: the shapes of kuberay_shapes.py and the rules that KubeRay's operator enforces beyond its CRDs."""

import re
from collections.abc import Callable, Iterator
from typing import Any

import yaml

from tests.kuberay_shapes import BODIES, METADATA

MAX_NAME = {"RayCluster": 53, "RayService": 47, "RayJob": 47, "RayCronJob": 36}
"""Longest names; KubeRay appends suffixes that must still fit in a label."""


def problems(manifest: dict[str, Any]) -> list[str]:
    """Every way in which a manifest breaks the shapes or the operator's rules; empty when it is fine."""
    identity = (str(manifest.get("apiVersion")), str(manifest.get("kind")))
    if identity not in BODIES:
        return [f"unknown kind {identity}"]
    shape = {"apiVersion!": str, "kind!": str, "metadata!": METADATA, **BODIES[identity]}
    found = list(_mismatches(manifest, shape, identity[1]))
    return found or list(_broken_rules(manifest))


def clusters(manifest: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The RayCluster spec inside a manifest, if it has one."""
    spec = manifest.get("spec", {})
    if manifest["kind"] == "RayCluster":
        yield spec
    elif manifest["kind"] == "RayService":
        yield spec["rayClusterConfig"]


def pods(manifest: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Every pod spec inside a manifest."""
    for cluster in clusters(manifest):
        yield cluster["headGroupSpec"]["template"]["spec"]
        yield from (group["template"]["spec"] for group in cluster["workerGroupSpecs"])
    if manifest["kind"] == "CronJob":
        yield manifest["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    elif manifest["kind"] == "StatefulSet":
        yield manifest["spec"]["template"]["spec"]


def number(value: int | str) -> float:
    """A Kubernetes quantity as a number: '500m' -> 0.5, '2Gi' -> 2147483648."""
    match = re.fullmatch(r"([\d.]+)(\D*)", str(value))
    assert match is not None, value
    return float(match[1]) * {"": 1, "m": 1e-3, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}[match[2]]


def _mismatches(value: Any, shape: Any, where: str) -> Iterator[str]:
    if isinstance(shape, dict):
        if not isinstance(value, dict):
            yield f"{where}: got {value!r}, expected a mapping"
            return
        allowed = {key.rstrip("!"): inner for key, inner in shape.items()}
        yield from (f"{where}: unknown key {key!r}" for key in value if key not in allowed)
        yield from (f"{where}: needs {key[:-1]!r}" for key in shape if key.endswith("!") and key[:-1] not in value)
        for key in value.keys() & allowed.keys():
            yield from _mismatches(value[key], allowed[key], f"{where}.{key}")
    elif isinstance(shape, list):
        if not isinstance(value, list) or not value:
            yield f"{where}: got {value!r}, expected a list"
            return
        for place, inner in enumerate(value):
            yield from _mismatches(inner, shape[0], f"{where}[{place}]")
    elif not _fits(value, shape):
        yield f"{where}: got {value!r}, expected {sorted(shape) if isinstance(shape, set) else shape}"


def _fits(value: Any, shape: set[str] | type | Callable[[Any], bool]) -> bool:
    if isinstance(shape, set):
        return isinstance(value, str) and value in shape
    if isinstance(shape, type) or not callable(shape):
        return isinstance(value, shape)
    return shape(value)


def _broken_rules(manifest: dict[str, Any]) -> Iterator[str]:
    kind, name = manifest["kind"], manifest["metadata"]["name"]
    longest = MAX_NAME.get(kind, 63)
    if len(name) > longest or not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name):
        yield f"{kind} {name}: not a DNS label of at most {longest} characters"
    for cluster in clusters(manifest):
        yield from _broken_cluster_rules(cluster, f"{kind} {name}")
    if kind in ("RayJob", "RayCronJob"):
        job = manifest["spec"] if kind == "RayJob" else manifest["spec"]["jobTemplate"]
        if list(job["clusterSelector"]) != ["ray.io/cluster"]:
            yield f"{kind} {name}: clusterSelector must be ray.io/cluster alone"
        if not job["activeDeadlineSeconds"]:
            yield f"{kind} {name}: activeDeadlineSeconds must be positive"
    if kind == "RayService" and not isinstance(yaml.safe_load(manifest["spec"]["serveConfigV2"]), dict):
        yield f"{kind} {name}: serveConfigV2 is not a YAML mapping"


def _broken_cluster_rules(cluster: dict[str, Any], where: str) -> Iterator[str]:
    autoscaling = cluster.get("enableInTreeAutoscaling", False)
    if "autoscalerOptions" in cluster and not autoscaling:
        yield f"{where}: autoscalerOptions without enableInTreeAutoscaling"
    names = [group["groupName"] for group in cluster["workerGroupSpecs"]]
    if len(set(names)) < len(names):
        yield f"{where}: worker groups {names} are not distinct"
    for group in cluster["workerGroupSpecs"]:
        if not group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]:
            yield f"{where}: {group['groupName']}: replicas outside [minReplicas, maxReplicas]"
    templates = [cluster["headGroupSpec"]["template"], *(group["template"] for group in cluster["workerGroupSpecs"])]
    if autoscaling and any(template["spec"].get("restartPolicy", "Never") != "Never" for template in templates):
        yield f"{where}: autoscaler v2 needs restartPolicy Never or none"
    environment = {variable["name"] for variable in templates[0]["spec"]["containers"][0].get("env", [])}
    managed = environment & {"RAY_REDIS_ADDRESS", "REDIS_PASSWORD", "REDIS_USERNAME", "RAY_enable_autoscaler_v2"}
    if managed:
        yield f"{where}: {sorted(managed)} belong to KubeRay's own options"
