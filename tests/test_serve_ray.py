"""The service on Ray Serve: both topologies, swaps under load, refusals, and the YAML files that describe it."""

import json
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
import yaml
from ray import serve
from ray.serve.schema import ServeDeploySchema

from benchmarks.serve_client import Plan
from seminar.artifacts import Artifact, Store
from seminar.config import ServeConfig, Settings
from seminar.errors import ArtifactError, SeminarError
from serve.app import build
from serve.deploy import FOLDER, STICKY_ROUTER, DeployError, Serve, config_of, served, swap, with_bundle
from serve.run import REPOSITORY, run
from tests.served_world import World, mixture, offline

LATER_MS = 1_700_000_000_000
ITEMS = [f"i{n:02d}" for n in range(0, 60, 4)]


@pytest.fixture(scope="session")
def world(tiny_store: Store, tiny_pairs: Artifact) -> World:
    return World.of(tiny_store, tiny_pairs)


@dataclass(frozen=True)
class Served:
    """Two applications of one Serve instance over one history store: `fused` with two ingresses, and `split`."""

    settings: Settings
    fused: str
    split: str


@pytest.fixture(scope="module")
def served_world(ray_session: None, world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    history = tmp_path_factory.mktemp("served") / "history"
    serving = ServeConfig(port=port, history=history, max_history_gib=0.1, overfetch=64)
    settings = Settings(workdir=world.store.root, serve=serving)
    split_settings = settings.model_copy(update={"serve": serving.model_copy(update={"topology": "split"})})
    config, other = (config_of(chosen, world.bundles[0].version) for chosen in (settings, split_settings))
    config["applications"] = [_small(config["applications"][0], "fused"), _small(other["applications"][0], "split")]
    serve.start(proxy_location="HeadOnly", http_options=config["http_options"])
    service = Serve(None)
    service.apply(config)
    service.wait_running(["fused", "split"])
    url = f"http://127.0.0.1:{port}"
    yield Served(settings, f"{url}/fused", f"{url}/split")
    serve.shutdown()


def _small(application: dict[str, Any], name: str) -> dict[str, Any]:
    """For two cores: fixed numbers of replicas with small claims."""
    for deployment in application["deployments"]:
        del deployment["autoscaling_config"]
        deployment["num_replicas"] = 2 if (name, deployment["name"]) == ("fused", "Ingress") else 1
        deployment["ray_actor_options"] = {"num_cpus": 0.1}
    runtime_env = {"working_dir": f"local://{REPOSITORY}"}
    return {**application, "name": name, "route_prefix": f"/{name}", "runtime_env": runtime_env}


def post(url: str, body: dict[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.load(answer)


def score(url: str, user: str, **more: Any) -> dict[str, Any]:
    return post(f"{url}/v1/score", {"user_id": user, "targets": [{"item_id": i} for i in ITEMS], "time_ms": LATER_MS, **more})


def test_both_topologies_serve_the_offline_scores(served_world: Served, world: World) -> None:
    for user in ("u01", "u08", "u17", "u28", "u29"):
        expected = offline(world, world.bundles[0], user, ITEMS, None, LATER_MS)
        for url in (served_world.fused, served_world.split):
            assert np.allclose(score(url, user)["scores"], expected, atol=1e-5)


def test_both_topologies_explain_alike(served_world: Served) -> None:
    fused, split = (score(url, "u17", explain=True)["explanation"] for url in (served_world.fused, served_world.split))
    assert [b["item_id"] for b in fused[0]["behaviours"]] == [b["item_id"] for b in split[0]["behaviours"]]
    assert len(fused[0]["behaviours"]) == 5


def recommend(url: str, user: str, **more: Any) -> dict[str, Any]:
    return post(f"{url}/v1/recommend", {"user_id": user, "n": 5, "candidates": 30, "time_ms": LATER_MS, **more})


def facts(told: dict[str, Any]) -> list[tuple[str, list[str]]]:
    """What bundles of other seeds answer otherwise: which items, found by whom."""
    return [(item["item_id"], item["sources"]) for item in told["items"]]


def test_both_topologies_recommend_alike_and_by_the_offline_scores(served_world: Served, world: World) -> None:
    for user, query in (("u08", {}), ("u17", {"query_id": "q-tea"}), ("nobody", {"query": "green leaves"})):
        fused, split = (recommend(url, user, **query) for url in (served_world.fused, served_world.split))
        assert facts(fused) == facts(split)
        for mine, other in zip(fused["items"], split["items"], strict=True):
            assert mine["score"] == pytest.approx(other["score"], abs=1e-6)
            assert [b["item_id"] for b in mine["because"]] == [b["item_id"] for b in other["because"]]
        if user != "nobody":
            items = [item["item_id"] for item in fused["items"]]
            expected = offline(world, world.bundles[0], user, items, query.get("query_id"), LATER_MS)
            assert np.allclose([item["score"] for item in fused["items"]], expected, atol=1e-5)


def test_overload_is_answered_with_503_and_retry_after(served_world: Served, tmp_path: Path) -> None:
    """By Serve's own proxy, which asks busy replicas again and again: few requests, and time for them.

    tests/test_serve_haproxy.py has the same of HAProxy.
    """
    body = {"user_id": "u08", "targets": [{"item_id": item} for item in ITEMS], "time_ms": LATER_MS}
    requests, plan = tmp_path / "requests.txt", tmp_path / "plan.json"
    requests.write_text(f"u08\t{json.dumps(body, separators=(',', ':'))}")
    address = urlsplit(served_world.fused)
    assert address.port is not None
    path = f"{address.path}/v1/score"
    load = Plan(address.port, path, str(requests), seconds=1, concurrency=500, scores=len(ITEMS), max_requests=500, drain_s=120)
    plan.write_text(json.dumps(asdict(load)))
    command = [sys.executable, "-m", "benchmarks.serve_client", str(plan)]
    told = json.loads(subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout)
    assert told["failures"] == []
    assert told["refused"] == told["statuses"]["503"] > 0
    assert told["good"] > 0


def test_event_is_seen_by_every_replica_of_the_node_at_once(served_world: Served) -> None:
    for number in range(10):
        answer = post(
            f"{served_world.fused}/v1/events",
            {"user_id": "shared", "events": [{"item_id": "i01", "time_ms": LATER_MS - 10**6 + number}]},
        )
        assert answer["history_length"] == number + 1
        for url in (served_world.split, served_world.fused, served_world.fused):
            assert score(url, "shared")["history_used"] == number + 1


def test_malformed_request_keeps_its_status_through_serve(served_world: Served) -> None:
    for url in (served_world.fused, served_world.split):
        with pytest.raises(urllib.error.HTTPError) as refused:
            post(f"{url}/v1/score", {"user_id": "u01", "targets": [{"item_id": "nothing"}]})
        assert refused.value.code == 422
        assert json.load(refused.value)["errors"][0]["what"] == "targets[0].item_id"


@dataclass
class Load:
    """Requests in flight from several threads, every other one for recommendations, with everything they got."""

    urls: list[str]
    answers: list[tuple[str, list[float]]] = field(default_factory=list)
    recommended: list[tuple[str, list[tuple[str, list[str]]]]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def __enter__(self) -> "Load":
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(url,)) for url in self.urls for _ in range(2)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, url: str) -> None:
        while not self._stop.is_set():
            try:
                answer = score(url, "u08")
                self.answers.append((answer["bundle_version"], answer["scores"]))
                answer = recommend(url, "u08")
                self.recommended.append((answer["bundle_version"], facts(answer)))
            except Exception as error:
                self.failures.append(repr(error))


def pids(url: str) -> dict[str, int]:
    return {state["replica"]: state["pid"] for state in served(url)["replicas"]}


def wait_for(url: str, field: str, value: str | None = None, without: str | None = None) -> dict[str, Any]:
    """Until the field has this value, or any, on all replicas but those of one deployment."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        told = served(url)
        found = [state[field] for state in told["replicas"] if state["deployment"] != without]
        if all(one is not None if value is None else one == value for one in found):
            return told
        time.sleep(0.05)
    raise AssertionError(f"{field} after 60 s: {found}")


def test_swap_under_load_fails_nobody_and_keeps_the_processes(served_world: Served, world: World) -> None:
    before = {url: pids(url) for url in (served_world.fused, served_world.split)}
    assert [len(found) for found in before.values()] == [3, 4]
    expected = {b.version: offline(world, b, "u08", ITEMS, None, LATER_MS) for b in world.bundles}
    found = {}
    for bundle in reversed(world.bundles):
        swap(None, served_world.fused, bundle.version)
        wait_for(served_world.split, "bundle_version", bundle.version)
        found[bundle.version] = facts(recommend(served_world.fused, "u08"))
    assert found[world.bundles[0].version] != found[world.bundles[1].version]
    with Load([served_world.fused, served_world.split]) as load:
        for bundle in (world.bundles[1], world.bundles[0], world.bundles[1], world.bundles[0]):
            swap(None, served_world.fused, bundle.version)
            wait_for(served_world.split, "bundle_version", bundle.version)
            time.sleep(0.3)
    assert load.failures == []
    assert {version for version, _ in load.answers} == set(expected)
    assert all(np.allclose(scores, expected[version], atol=1e-5) for version, scores in load.answers)
    assert {version for version, _ in load.recommended} == set(found)
    assert all(told == found[version] for version, told in load.recommended)
    assert {url: pids(url) for url in before} == before


def test_mixture_is_refused_by_every_replica_and_the_old_bundle_serves_on(
    served_world: Served, world: World, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Every replica that reads codes: a Proposer takes the bundle, and is asked for the old one all the same."""
    bad, good = mixture(world, tmp_path_factory.mktemp("bad") / "mixture"), world.bundles[0]
    before = pids(served_world.split)
    with Load([served_world.fused, served_world.split]) as load:
        with pytest.raises(DeployError, match="VersionMismatch"):
            swap(None, served_world.fused, str(bad))
        told = wait_for(served_world.split, "refused", without="Proposer")
    assert told["version"] == good.version
    assert load.failures == []
    assert {version for version, _ in [*load.answers, *load.recommended]} == {good.version}
    states = swap(None, served_world.fused, good.version)
    assert all(state["refused"] is None for state in states)
    wait_for(served_world.split, "bundle_version", good.version)
    assert pids(served_world.split) == before


def test_bundle_without_an_item_index_is_taken_scores_and_is_409_for_recommendations(served_world: Served, world: World) -> None:
    swap(None, served_world.fused, world.plain.version)
    expected = offline(world, world.bundles[0], "u08", ITEMS, None, LATER_MS)
    assert np.allclose(score(served_world.fused, "u08")["scores"], expected, atol=1e-5)
    with pytest.raises(urllib.error.HTTPError) as refused:
        recommend(served_world.fused, "u08")
    assert refused.value.code == 409
    assert json.load(refused.value)["errors"][0]["got"] == "no item index"
    swap(None, served_world.fused, world.bundles[0].version)
    assert recommend(served_world.fused, "u08")["bundle_version"] == world.bundles[0].version
    wait_for(served_world.split, "bundle_version", world.bundles[0].version)


def test_service_started_anew_serves_the_current_bundle_and_every_event(served_world: Served, world: World) -> None:
    before = score(served_world.fused, "shared")
    running = run(served_world.settings, block=False)
    assert running.version == world.bundles[0].version
    after = score(running.url, "shared")
    assert after["history_used"] == before["history_used"] == 10
    assert after["scores"] == before["scores"]


@pytest.mark.parametrize("recommends", [True, False])
@pytest.mark.parametrize("topology", ["fused", "split"])
def test_yaml_is_what_build_makes(topology: str, recommends: bool) -> None:
    config = yaml.safe_load((FOLDER / f"{topology}.yaml").read_text())
    ServeDeploySchema.model_validate(config)
    application = config["applications"][0]
    assert application["args"]["topology"] == topology
    names = {deployment["name"] for deployment in application["deployments"]}
    assert names == {"fused": {"Ingress", "Proposer"}, "split": {"Ingress", "Proposer", "GSU", "ESU"}}[topology]
    assert all(deployment["autoscaling_config"]["min_replicas"] >= 1 for deployment in application["deployments"])
    from ray.serve._private.build_app import build_app

    arguments = {**application["args"], "recommend": recommends}
    built = build_app(build(arguments), name="x", route_prefix="/", default_runtime_env=None)
    assert {deployment.name for deployment in built.deployments} == (names if recommends else names - {"Proposer"})


def test_settings_fill_in_the_yaml(world: World) -> None:
    workdir, version = world.store.root, world.bundles[0].version
    settings = Settings(workdir=workdir, serve=ServeConfig(topology="split", port=9001, max_targets=7, retriever="exact"))
    config = config_of(settings, version)
    ServeDeploySchema.model_validate(config)
    application = config["applications"][0]
    assert (config["http_options"]["host"], config["http_options"]["port"]) == ("127.0.0.1", 9001)
    assert {d["user_config"]["bundle"] for d in application["deployments"]} == {version}
    assert application["args"] | {"max_targets": 7, "retriever": "exact", "workdir": str(workdir)} == application["args"]
    changed = with_bundle(config, "v2")
    assert changed != config
    assert with_bundle(changed, version) == config


def test_proxy_keeps_users_on_a_replica_by_a_router_and_haproxy_by_itself(world: World) -> None:
    def routers(**serving: Any) -> dict[str, Any]:
        settings = Settings(workdir=world.store.root, serve=ServeConfig(topology="split", **serving))
        config = config_of(settings, world.bundles[0].version)
        ServeDeploySchema.model_validate(config)
        return {d["name"]: d.get("request_router_config") for d in config["applications"][0]["deployments"]}

    assert routers(ingress="proxy") == dict.fromkeys(("Ingress", "GSU"), STICKY_ROUTER) | dict.fromkeys(("ESU", "Proposer"))
    assert routers() == {"GSU": STICKY_ROUTER} | dict.fromkeys(("Ingress", "ESU", "Proposer"))


@pytest.mark.parametrize("topology", ["fused", "split"])
def test_proposer_is_deployed_where_it_is_wanted_and_the_bundle_has_an_index(world: World, topology: Any) -> None:
    def names(bundle: str, **serving: Any) -> tuple[set[str], bool]:
        settings = Settings(workdir=world.store.root, serve=ServeConfig(topology=topology, **serving))
        (application,) = config_of(settings, bundle)["applications"]
        return {deployment["name"] for deployment in application["deployments"]}, application["args"]["recommend"]

    every, recommends = names(world.bundles[0].version)
    assert recommends
    assert "Proposer" in every
    assert names(str(world.bundles[0].path)) == (every, True)
    assert names(world.plain.version) == (every - {"Proposer"}, False)
    assert names(world.bundles[0].version, recommend=False) == (every - {"Proposer"}, False)
    for unknown in ("v-unknown", "/no/such/folder"):
        with pytest.raises(ArtifactError):
            names(unknown)


def test_unreachable_service_is_one_sentence() -> None:
    with pytest.raises(SeminarError, match=r"v1/bundle: got .* expected a running service"):
        served("http://127.0.0.1:9")
