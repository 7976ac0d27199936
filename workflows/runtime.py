"""What every job needs from Ray and must not repeat: one quiet session, a map over a cluster, errors as one sentence.

To connect to a cluster, RAY_AUTH_MODE (and for `token` RAY_AUTH_TOKEN_PATH) must be equal here and at its head: left unset, the
two sides disagree about the default and the connection is refused.
"""

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import ray
import ray.data

from seminar import errors
from seminar.config import RayConfig, Settings

Step = Callable[[dict[str, Any]], dict[str, Any]]
"""A row of small values in, a row of small values out."""

REPOSITORY = Path(__file__).resolve().parent.parent
"""Folder that holds `workflows` and `seminar`; sent to a cluster whose nodes may not have it."""

HUGE_PAGES = ("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")
"""Environment of processes that are started after it is set: malloc asks for huge pages, which Linux gives where it may. A
training step touches hundreds of MB and takes a third less CPU time with them, with the same results."""


@contextmanager
def ray_session(config: RayConfig, *, dashboard: bool = False) -> Iterator[None]:
    """Ray for the time of a job: the cluster at `config.address` or RAY_ADDRESS; without one, or at "local", its own.

    A session that is already open is used and left open, so jobs can run inside jobs and tests share one. What workers print
    stays in Ray's logs: it would drown the job's own lines. dashboard: give a Ray of this process one; a service needs it for
    its bundle to be swapped in place.
    """
    if ray.is_initialized():
        _quieten()
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    address = config.address or os.environ.get("RAY_ADDRESS")
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.WARNING}
    if address and address != "local":
        ray.init(address=address, runtime_env=_code(), **options)
    else:
        # Ray protects it with a token unless RAY_AUTH_MODE says otherwise, and warns of that; setting the mode here would
        # reach the processes it starts but no longer this one, which then cannot connect.
        logging.getLogger("ray._private.authentication.authentication_token_setup").setLevel(logging.ERROR)
        # Ray's C++ side prints advice about its own actors to our terminal; its log files keep everything else.
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
        os.environ.setdefault(*HUGE_PAGES)
        ray.init(address="local", num_cpus=config.num_cpus, include_dashboard=dashboard, **options)
    _quieten()
    try:
        yield
    finally:
        ray.shutdown()


def stream(function: Step, rows: Sequence[dict[str, Any]], config: RayConfig, *, gpus: bool = False) -> Iterator[dict[str, Any]]:
    """Results of `function` over `rows` as they are ready, through Ray Data: one block, so one retried task, a row.

    `function` must be importable on the workers and idempotent; rows and results are small flat dicts, the data itself goes
    through files. Ray Data bounds what is in flight. gpus: a task takes `gpus_per_worker` too. A SeminarError of a worker is
    raised here with its sentence.
    """
    if not rows:
        return
    dataset = ray.data.from_items(list(rows), override_num_blocks=len(rows))
    num_gpus = config.gpus_per_worker if gpus and config.gpus_per_worker else None
    mapped = dataset.map(partial(guarded, function), num_cpus=config.cpus_per_worker, num_gpus=num_gpus)
    yield from checked(mapped.iter_rows())


def guarded(function: Step, row: dict[str, Any]) -> dict[str, Any]:
    """The function's row, or one that carries its SeminarError to `checked`."""
    # Ray forgets the type and cause of an exception on its way to the driver; a row arrives as it was sent.
    try:
        return function(row)
    except errors.SeminarError as error:
        return {"error": type(error).__name__, "sentence": str(error)}


def checked(rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Rows of `guarded` as they come; the first error among them is raised here as it was there."""
    for row in rows:
        if "error" in row:
            raise getattr(errors, row["error"])(row["sentence"])
        yield row


def absolute(settings: Settings) -> Settings:
    """The same settings with absolute paths: a worker's current folder is not the driver's."""
    data = {name: path.resolve() for name in ("path", "images") if (path := getattr(settings.data, name)) is not None}
    return settings.model_copy(
        update={"workdir": settings.workdir.resolve(), "data": settings.data.model_copy(update=data)},
    )


def _code() -> dict[str, Any] | None:
    # A submitted job already carries its working directory; setting a second one is refused by Ray.
    submitted = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
    return None if submitted else {"working_dir": str(REPOSITORY)}


def _quieten() -> None:
    # Progress bars of Ray Data are noise in job logs (ray #46826, #58250); jobs print their own lines.
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    for library in ("ray.data", "ray.serve"):
        logging.getLogger(library).setLevel(logging.WARNING)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)
