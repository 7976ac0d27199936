"""cluster/kuberay-history-redis: a service of several pods over one history server that keeps what it is told."""

import copy
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from benchmarks.redis_server import RedisServer
from seminar.history.redis_server import PASSWORD_VARIABLE
from seminar.history.redis_store import RedisHistoryStore
from serve.options import Options
from tests.kuberay import number, problems
from tests.stores import needs_server

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "cluster/kuberay-history-redis"
SERVER_SERVICE, SERVER = yaml.safe_load_all((FOLDER / "redis.yaml").read_text())
CONTAINER = SERVER["spec"]["template"]["spec"]["containers"][0]
BEFORE = yaml.safe_load((ROOT / "cluster/kuberay/rayservice.yaml").read_text())


def _patched() -> dict[str, Any]:
    """The RayService as kustomize would make it; the operations that the patch uses, of RFC 6902."""
    result = copy.deepcopy(BEFORE)
    for step in yaml.safe_load((FOLDER / "rayservice.patch.yaml").read_text()):
        *path, last = step["path"].strip("/").split("/")
        target: Any = result
        for key in path:
            target = target[int(key) if isinstance(target, list) else key]
        if last == "-":
            target.append(step["value"])
            continue
        key = int(last) if isinstance(target, list) else last
        assert step["op"] == "add" or key in (range(len(target)) if isinstance(target, list) else target), step["path"]
        if step["op"] == "test":
            assert target[key] == step["value"]
        else:
            target[key] = step["value"]
    return result


SERVICE = _patched()
GROUP = SERVICE["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]
(APPLICATION,) = yaml.safe_load(SERVICE["spec"]["serveConfigV2"])["applications"]


def test_the_patched_service_is_accepted_by_the_operator() -> None:
    assert problems(SERVICE) == []


def test_its_config_is_that_of_fused_with_the_server_in_place_of_the_folder() -> None:
    expected = yaml.safe_load((ROOT / "serve/fused.yaml").read_text())
    arguments = expected["applications"][0]["args"]
    del arguments["history"]
    arguments["history_url"] = "redis://seminar-histories:6379/0"
    assert yaml.safe_load(SERVICE["spec"]["serveConfigV2"]) == expected
    assert Options.parse(APPLICATION["args"]).history_durability == "always"


def test_service_and_server_agree_on_name_port_and_password() -> None:
    url = urlsplit(APPLICATION["args"]["history_url"])
    assert (url.scheme, url.hostname) == ("redis", SERVER_SERVICE["metadata"]["name"])
    assert url.password is None
    assert url.port == SERVER_SERVICE["spec"]["ports"][0]["port"] == CONTAINER["ports"][0]["containerPort"]
    assert SERVER_SERVICE["spec"]["selector"].items() <= SERVER["spec"]["template"]["metadata"]["labels"].items()
    (variable,) = [v for v in GROUP["template"]["spec"]["containers"][0]["env"] if v["name"] == PASSWORD_VARIABLE]
    assert [variable["valueFrom"]] == [v["valueFrom"] for v in CONTAINER["env"] if v["name"] == "REDIS_PASSWORD"]
    assert "$(REDIS_PASSWORD)" in CONTAINER["args"]


def test_several_pods_serve_and_none_of_them_claims_a_disk_of_histories() -> None:
    assert GROUP["maxReplicas"] > 1
    assert SERVICE["spec"]["upgradeStrategy"] == {"type": "NewCluster"}
    volumes = {volume["name"]: volume for volume in GROUP["template"]["spec"]["volumes"]}
    mounts = {mount["mountPath"]: mount["name"] for mount in GROUP["template"]["spec"]["containers"][0]["volumeMounts"]}
    cache = next(volumes[name] for path, name in mounts.items() if APPLICATION["args"]["keys"].startswith(path))
    assert "emptyDir" in cache
    assert "seminar-history" not in str(SERVICE)


def test_server_writes_to_its_own_volume_and_leaves_memory_to_rewrite_its_file() -> None:
    options = dict(zip(CONTAINER["args"][::2], CONTAINER["args"][1::2], strict=True))
    mounts = {mount["mountPath"]: mount["name"] for mount in CONTAINER["volumeMounts"]}
    assert mounts[options["--dir"]] in [claim["metadata"]["name"] for claim in SERVER["spec"]["volumeClaimTemplates"]]
    assert 2 * number(options["--maxmemory"].replace("gb", "Gi")) <= number(CONTAINER["resources"]["limits"]["memory"])


@needs_server
def test_a_server_with_these_settings_is_one_that_the_store_trusts(tmp_path: Path) -> None:
    options = dict(zip(CONTAINER["args"][::2], CONTAINER["args"][1::2], strict=True))
    for own in ("--dir", "--requirepass", "--save"):
        del options[own]
    with RedisServer(tmp_path, *(part for pair in options.items() for part in pair)) as server:
        RedisHistoryStore(server.url, "always").close()
