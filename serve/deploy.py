"""The declarative way in: a config from settings, applied over the dashboard's REST API or to the Ray of this process; the swap.

`serve.run` always replaces replicas; a declarative config with nothing but `user_config` changed is taken in place.
"""

import json
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import yaml
from ray.dashboard.modules.serve.sdk import ServeSubmissionClient
from ray.serve._private.client import ServeControllerClient
from ray.serve.context import _get_global_client
from ray.serve.schema import ServeDeploySchema

from seminar.config import Settings
from seminar.errors import SeminarError, explain
from serve.access import bearer, read_token, require_guarded
from serve.options import Options
from serve.proposing import has_index, published
from serve.rpc import SERVICER

FOLDER = Path(__file__).resolve().parent
APPLICATION = "seminar"
STICKY_ROUTER = {
    "request_router_class": "ray.serve.experimental.consistent_hash_router:ConsistentHashRouter",
    "request_router_kwargs": {"num_fallback_replicas": 1},
}
"""A user's requests (header x-session-id) go to one replica, and to a second one while the first is full."""
POLL_S = 0.1
EXPORTER = "serve.tracing:exporter"


class DeployError(SeminarError):
    """Serve did not take a config, or a replica refused a bundle."""


def config_of(settings: Settings, bundle: str) -> dict[str, Any]:
    """The YAML of the chosen topology with these settings filled in; every deployment serves `bundle`, a version or a path.

    Without serve.recommend, or where the bundle has no item index, it has no Proposer. ArtifactError if there is no such bundle.
    """
    chosen = settings.serve
    config = yaml.safe_load((FOLDER / f"{chosen.topology}.yaml").read_text())
    config["http_options"] |= {"host": chosen.host, "port": chosen.port}
    token = read_token(chosen.token_file)
    require_guarded(chosen.host, token, chosen.insecure)
    if chosen.grpc_port is not None:
        require_guarded("0.0.0.0", token, chosen.insecure, "serve.grpc_port")
        config["grpc_options"] = {"port": chosen.grpc_port, "grpc_servicer_functions": [SERVICER]}
    args = Options(
        workdir=str(settings.workdir.resolve()),
        history=str(chosen.history.resolve()) if chosen.history else None,
        keys=str(chosen.keys.resolve()) if chosen.keys else None,
        token_file=str(chosen.token_file.resolve()) if chosen.token_file else None,
        **chosen.model_dump(include=set(Options.model_fields) - {"workdir", "history", "keys", "token_file"}),
    )
    application = config["applications"][0]
    if not (args.recommend and has_index(published(args.bundle_folder(bundle)))):
        args = args.model_copy(update={"recommend": False})
        application["deployments"] = [d for d in application["deployments"] if d["name"] != "Proposer"]
    application["args"] = args.model_dump(exclude_none=True)
    if chosen.trace_sample:
        config["tracing_config"] = {"enabled": True, "exporter_import_path": EXPORTER, "sampling_ratio": chosen.trace_sample}
    if chosen.ingress == "proxy":
        # HAProxy goes past Serve's routers, and Serve refuses one on the ingress behind it.
        (ingress,) = (d for d in application["deployments"] if d["name"] == "Ingress")
        ingress["request_router_config"] = STICKY_ROUTER
    return with_bundle(config, bundle)


def with_bundle(config: dict[str, Any], bundle: str) -> dict[str, Any]:
    """The same config with nothing but the bundle of our application changed."""
    config = json.loads(json.dumps(config))
    for application in config["applications"]:
        if application["import_path"] == "serve.app:build":
            for deployment in application["deployments"]:
                deployment["user_config"] = {"bundle": bundle}
    return config


def _client() -> ServeControllerClient:
    # What the dashboard's REST endpoint calls; the public serve.run would replace the replicas.
    client = _get_global_client()
    assert client is not None
    return client


@dataclass(frozen=True)
class Serve:
    """A Serve instance: behind a dashboard's URL, or (None) in the Ray session of this process."""

    dashboard: str | None

    def apply(self, config: dict[str, Any]) -> None:
        """Hand over a declarative config; returns at once."""
        if self.dashboard is not None:
            ServeSubmissionClient(self.dashboard).deploy_applications(config)
        else:
            _client().deploy_apps(ServeDeploySchema.model_validate(config))

    def details(self) -> dict[str, Any]:
        """Serve's own description of everything it runs."""
        if self.dashboard is not None:
            return ServeSubmissionClient(self.dashboard).get_serve_details()
        return _client().get_serve_details()

    def config(self) -> dict[str, Any]:
        """The declarative config now in force."""
        details = self.details()
        return {
            "proxy_location": details["proxy_location"],
            "http_options": details["http_options"],
            "applications": [a["deployed_app_config"] for a in details["applications"].values() if a["deployed_app_config"]],
        }

    def wait_running(self, names: list[str], timeout_s: float = 600) -> None:
        """Until all these applications run; DeployError with Serve's own words when one cannot start."""
        deadline = time.monotonic() + timeout_s
        while not self.runs(names):
            if time.monotonic() > deadline:
                got = f"no service in {timeout_s:.0f} s"
                raise DeployError(explain("deploy", got=got, expected="RUNNING", fix="see serve status"))
            time.sleep(POLL_S)

    def runs(self, names: list[str]) -> bool:
        """True if every replica of these applications has its config; DeployError if one of them cannot get there."""
        found = {name: app for name, app in self.details()["applications"].items() if name in names}
        failed = [app for app in found.values() if app["status"] in ("DEPLOY_FAILED", "UNHEALTHY")]
        if failed:
            reasons = [failed[0]["message"], *(d["message"] for d in failed[0]["deployments"].values())]
            got = "; ".join(filter(None, reasons))
            raise DeployError(explain("deploy", got=got, expected="a running application", fix="mend that"))
        return len(found) == len(names) and all(app["status"] == "RUNNING" for app in found.values())


def swap(
    dashboard: str | None, endpoint: str, bundle: str, timeout_s: float = 120, token_file: Path | None = None
) -> list[dict[str, Any]]:
    """Serve another bundle in place, and return the replicas when each names its version.

    endpoint: base URL of the service. bundle: a version or a path. DeployError if a replica refuses it (its reason is told, and
    the old bundle serves on) or does not answer in time: then the config still names the new bundle, so swap back.
    """
    service = Serve(dashboard)
    before = service.config()
    after = with_bundle(before, bundle)
    # A refusal from before does not count, unless Serve will not offer again because nothing changes.
    old = [] if after == before else [state["refused"] for state in served(endpoint, token_file)["replicas"]]
    service.apply(after)
    names = [application["name"] for application in after["applications"]]
    version, deadline, states = Path(bundle).name, time.monotonic() + timeout_s, []
    while time.monotonic() < deadline:
        # First: a replica that is just taking the config does not answer below, but Serve knows of it.
        settled = service.runs(names)
        states = served(endpoint, token_file)["replicas"]
        refusals = [state["refused"] for state in states if state["refused"] not in (None, *old)]
        refused = [refusal for refusal in refusals if refusal["bundle"] == bundle]
        if refused:
            fix = "the bundle before it serves on; swap back"
            raise DeployError(explain(f"bundle {bundle}", got=refused[0]["error"], expected="a bundle that loads", fix=fix))
        swapped = (s["bundle_version"] == version and not (s["loading"] or s["refused"]) for s in states)
        if settled and all(swapped):
            return states
        time.sleep(POLL_S)
    got = ", ".join(sorted({str(state["bundle_version"]) for state in states}))
    raise DeployError(explain(f"swap after {timeout_s:.0f} s", got=f"bundles {got}", expected=version, fix="see serve status"))


def served(endpoint: str, token_file: Path | None = None) -> dict[str, Any]:
    """GET /v1/bundle of a running service. token_file: as in the settings; none: the token in the environment, if any."""
    url = f"{endpoint.rstrip('/')}/v1/bundle"
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=bearer(token_file)), timeout=30) as answer:
            return json.load(answer)
    except (urllib.error.URLError, TimeoutError) as error:
        raise DeployError(explain(url, got=str(error), expected="a running service", fix="check refresh.endpoint")) from error


def dashboard_of_session() -> str | None:
    """Dashboard of the Ray this process is connected to, None if it has none."""
    url = ray._private.worker.get_dashboard_url()
    return f"http://{url}" if url else None
