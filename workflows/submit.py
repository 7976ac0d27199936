"""submit: `ray job submit --working-dir .` with our jobs' names, settings checked here first, logs streamed, exit code passed on.

The submission id is an idempotency key: a second submission under the same id attaches to the first one, or runs it again if it
failed. Jobs resume at their own drafts, so running one again costs only what is missing.
"""

import asyncio
import logging
import os
import shlex
import sys
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seminar.errors import ConfigError, SeminarError, explain

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

REPOSITORY = Path(__file__).resolve().parent.parent
DEFAULT_ADDRESS = "http://127.0.0.1:8265"
POLL_S = 1.0


class SubmitError(SeminarError):
    """The cluster could not be reached or refused the job."""


@dataclass(frozen=True)
class Submission:
    """A job as the cluster's head is asked to run it.

    arguments: what follows the job's name on its own command line. token_path: file with the cluster's authentication token, or
    None where the environment (RAY_AUTH_MODE, RAY_AUTH_TOKEN_PATH) already says how.
    """

    job: str
    arguments: Sequence[str]
    address: str = DEFAULT_ADDRESS
    submission_id: str | None = None
    token_path: Path | None = None
    wait: bool = True

    @property
    def entrypoint(self) -> str:
        # `python` is the head's own, the first on its PATH.
        return shlex.join(["python", "-m", "workflows", self.job, *self.arguments])


def run(submission: Submission, working_dir: Path = REPOSITORY) -> int:
    """Submit, or attach to, a job; stream its log to standard output and return its exit code (0 at once without wait).

    Raises ConfigError if a file named by --config would not travel with the working directory, SubmitError if the cluster does
    not answer, refuses the token or refuses the job.
    """
    _check_config(submission.arguments, working_dir)
    if submission.token_path:
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ["RAY_AUTH_TOKEN_PATH"] = str(submission.token_path)
    os.environ["RAY_API_SERVER_ADDRESS"] = submission.address  # else Ray prefers RAY_ADDRESS to what it is told

    # Ray reads its authentication mode when it is first imported.
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    for handler in logging.getLogger("ray").handlers:
        handler.setLevel(logging.ERROR)  # the client's own notes would drown the job's log
    try:
        client = JobSubmissionClient(submission.address)
        name = _submit(client, submission, working_dir)
        print(f"{submission.job}: submission id {name} at {submission.address}", file=sys.stderr, flush=True)
        return _follow(client, name) if submission.wait else 0
    except AuthenticationError as error:
        fix = "pass --token-path FILE, or set RAY_AUTH_MODE and RAY_AUTH_TOKEN_PATH as on the head"
        raise SubmitError(explain(submission.address, got="a refusal", expected="the head's token", fix=fix)) from error
    except ConnectionError as error:
        fix = "start the head with its dashboard, or mend --address"
        raise SubmitError(explain(submission.address, got="no answer", expected="a Ray dashboard", fix=fix)) from error
    except RuntimeError as error:
        fix = "see the dashboard's log"
        raise SubmitError(explain(submission.address, got=str(error), expected="the job accepted", fix=fix)) from error


def _submit(client: "JobSubmissionClient", submission: Submission, working_dir: Path) -> str:
    now = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
    name = submission.submission_id or f"seminar-{submission.job}-{now}-{uuid.uuid4().hex[:6]}"
    for earlier in client.list_jobs():
        if earlier is None or earlier.submission_id != name:
            continue
        if earlier.entrypoint != submission.entrypoint:
            got, fix = f"{name!r}, in use for `{earlier.entrypoint}`", "choose another --submission-id"
            raise ConfigError(explain("submission id", got=got, expected="one job an id", fix=fix))
        if earlier.status.value not in ("FAILED", "STOPPED"):
            return name
        client.delete_job(name)
    return client.submit_job(
        entrypoint=submission.entrypoint,
        submission_id=name,
        runtime_env={"working_dir": str(working_dir)},
        metadata={"job": submission.job},
    )


def _follow(client: "JobSubmissionClient", name: str) -> int:
    """Print the log until the job ends; its exit code, or 1 if it ended without one."""

    async def stream() -> None:
        async for text in client.tail_job_logs(name):
            print(text, end="", flush=True)

    try:
        asyncio.run(stream())
        # The log ends a moment before the status does, or early with a lost connection.
        while not client.get_job_status(name).is_terminal():
            time.sleep(POLL_S)
        info: Any = client.get_job_info(name)
    except KeyboardInterrupt:
        print(f"\nstill running on the cluster as {name}; stop it with `ray job stop {name}`", file=sys.stderr)
        return 130
    if info.status.value == "SUCCEEDED":
        return 0
    reason = (info.message or "").partition(", last available logs")[0]  # the log has just been printed
    print(f"{name}: {info.status.value.lower()}: {reason}", file=sys.stderr)
    return info.driver_exit_code or 1


def _check_config(arguments: Sequence[str], working_dir: Path) -> None:
    """A relative path is read again on the head, in the working directory that travels there; an absolute one is trusted."""
    for index, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        path = Path(value if equals else arguments[index + 1]) if name == "--config" else None
        if path is None or path.is_absolute():
            continue
        if not (working_dir / path).resolve().is_relative_to(working_dir.resolve()) or not (working_dir / path).is_file():
            expected = f"a path relative to {working_dir} and inside it"
            fix = "it is read on the cluster, from the working directory"
            raise ConfigError(explain("--config", got=f"{path}", expected=expected, fix=fix))
