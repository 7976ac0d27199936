"""One night on Kubernetes: create the dated refresh RayJob, wait for its end, try again if it failed.

The CronJob runs this inside the cluster. It waits because `concurrencyPolicy: Forbid` only guards what the CronJob's own pod
does: a pod that creates a RayJob and leaves would let nights overlap, and a failed night would look like a good one. The name
carries the date, so a restarted pod finds the night's job and watches that one instead of starting a second.

Plain HTTP to the API server: the pod needs no kubectl image, and three calls need no client library.
"""

import argparse
import json
import ssl
import sys
import time
import urllib.error
import urllib.request
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import yaml

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
TEMPLATE = Path(__file__).with_name("rayjob-refresh.yaml")
ENDED = {"Complete", "Failed", "ValidationFailed"}


class RayJobs:
    """RayJobs of one namespace through the Kubernetes API, as the pod's service account."""

    def __init__(self, server: str, account: Path) -> None:
        namespace = (account / "namespace").read_text().strip()
        self._url = f"{server}/apis/ray.io/v1/namespaces/{namespace}/rayjobs"
        self._token = account / "token"
        self._tls = ssl.create_default_context(cafile=str(account / "ca.crt")) if server.startswith("https") else None

    def create(self, manifest: dict[str, Any]) -> bool:
        """True if created, False if a RayJob of that name is there already."""
        try:
            self._call("POST", self._url, manifest)
        except urllib.error.HTTPError as error:
            if error.code == 409:
                return False
            raise
        return True

    def status(self, name: str) -> tuple[str, str]:
        """(deployment status, job status) as KubeRay reports them; empty strings before its first report."""
        status = self._call("GET", f"{self._url}/{name}").get("status", {})
        return status.get("jobDeploymentStatus", ""), status.get("jobStatus", "")

    def _call(self, method: str, url: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        # The kubelet rotates the token, so it is read for every call.
        headers = {"Authorization": f"Bearer {self._token.read_text().strip()}", "Content-Type": "application/json"}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(url, data=data, headers=headers, method=method)
        with urllib.request.urlopen(request, timeout=30, context=self._tls) as answer:
            return json.load(answer)


def manifest(template: dict[str, Any], night: date, attempt: int) -> dict[str, Any]:
    """The refresh RayJob under the night's name; attempts share the run id, so a later one resumes an earlier one's steps.

    The Ray job gets the same fixed id: Ray refuses an id twice, which stops a doubled submission.
    """
    name = f"{template['metadata']['name']}-{night:%Y%m%d}-{attempt}"
    entrypoint = f"{template['spec']['entrypoint']} --refresh.run-id {night.isoformat()}"
    return {
        **template,
        "metadata": {**template["metadata"], "name": name},
        "spec": {**template["spec"], "entrypoint": entrypoint, "jobId": name},
    }


def run_night(jobs: RayJobs, template: dict[str, Any], night: date, *, attempts: int, poll_s: float) -> bool:
    """True once an attempt succeeded, False when all failed."""
    for attempt in range(1, attempts + 1):
        body = manifest(template, night, attempt)
        name = body["metadata"]["name"]
        print(f"{name}: {'created' if jobs.create(body) else 'already there, watching it'}", flush=True)
        if _wait(jobs, name, poll_s) == "SUCCEEDED":
            return True
    return False


def _wait(jobs: RayJobs, name: str, poll_s: float) -> str:
    seen = None
    while True:
        try:
            current = jobs.status(name)
        except (urllib.error.URLError, TimeoutError) as error:
            # A job that is gone can never end well; an API server that restarts answers again.
            if isinstance(error, urllib.error.HTTPError) and error.code < 500:
                raise
            current = ("unreachable", str(error))
        if current != seen:
            print(f"{name}: {current[0] or 'new'} {current[1]}".rstrip(), flush=True)
            seen = current
        if current[0] in ENDED:
            return current[1]
        time.sleep(poll_s)


def main() -> int:
    """0 when the night is done, 1 when every attempt failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--night", type=date.fromisoformat, default=datetime.now(UTC).date(), help="UTC date, YYYY-MM-DD; default today"
    )
    parser.add_argument("--attempts", type=int, default=3)
    parser.add_argument("--poll-s", type=float, default=15)
    parser.add_argument("--template", type=Path, default=TEMPLATE)
    parser.add_argument("--server", default="https://kubernetes.default.svc")
    parser.add_argument("--account", type=Path, default=ACCOUNT, help="folder with token, namespace and ca.crt")
    options = parser.parse_args()
    template = yaml.safe_load(options.template.read_text())
    jobs = RayJobs(options.server, options.account)
    return 0 if run_night(jobs, template, options.night, attempts=options.attempts, poll_s=options.poll_s) else 1


if __name__ == "__main__":
    sys.exit(main())
