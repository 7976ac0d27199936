"""The `seminar` command: one line a job, settings from a TOML file and flags, errors as one sentence with exit code 2.

Importing this costs milliseconds: torch, Ray and the jobs are imported when a job is run. Jobs that need Ray live in
`workflows/` and `serve/`, outside the wheel, and are found in the checkout.
"""

import argparse
import difflib
import importlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, NoReturn

from seminar.errors import ConfigError, SeminarError, explain

if TYPE_CHECKING:
    from seminar.artifacts import Store
    from seminar.config import Settings

_SETTINGS = "[--config FILE] [--section.key VALUE ...]"


@dataclass(frozen=True)
class Job:
    """One line of the help, the sections of settings a job reads, and what runs it; `run` gets the job's name and arguments."""

    summary: str
    run: Callable[[str, Sequence[str]], int]
    sections: tuple[str, ...] = ()
    usage: str = _SETTINGS


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; its exit code, 2 after a sentence about an error in input, settings or artefacts."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help"):
        print(_overview())
        return 0 if argv else 2
    name, arguments = argv[0], argv[1:]
    try:
        job = _find(name)
        if "-h" in arguments or "--help" in arguments:
            _help(name, job, [a for a in arguments if a not in ("-h", "--help")])
            return 0
        return job.run(name, arguments)
    except SeminarError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        # Errors of libraries may have no file and many lines, of which the last says what went wrong.
        problem = error.strerror or (str(error).splitlines() or [type(error).__name__])[-1]
        print("error:", f"{error.filename}: {problem}" if error.filename is not None else problem, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; run the same command again to go on where it stopped", file=sys.stderr)
        return 130


def parse_job_args(argv: Sequence[str]) -> "Settings":
    """Settings of one job from the arguments behind its name; ConfigError for anything unknown or out of bounds."""
    from seminar.flags import parse_job_args as parse

    return parse(argv)


def _run_job(name: str, argv: Sequence[str]) -> int:
    _checkout("workflows.__main__").run_job(name, argv)
    return 0


def _check(name: str, argv: Sequence[str]) -> int:
    parser = _Parser(name)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--quarantine", type=Path)
    own = parser.parse_args(argv)
    if own.quarantine and (own.quarantine.is_dir() or not own.quarantine.parent.is_dir()):
        got = "a folder" if own.quarantine.is_dir() else "a file in a folder that does not exist"
        fix = "name a file" if own.quarantine.is_dir() else "make the folder first"
        raise ConfigError(explain(f"--quarantine {own.quarantine}", got=got, expected="a file to write", fix=fix))
    from seminar.data.tables import check_folder

    report = check_folder(own.folder)
    print(report.render())
    if own.quarantine:
        report.write_quarantine(own.quarantine)
    report.require_behaviours()
    return 0


def _serve(name: str, argv: Sequence[str]) -> int:
    settings = parse_job_args(argv)
    _checkout("serve.run").run(settings, block=True)
    return 0


def _demo(name: str, argv: Sequence[str]) -> int:
    parser = _Parser(name)
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("--households", type=int)
    own, rest = parser.parse_known_args(argv)
    if own.households is not None and own.households < 1:
        raise ConfigError(explain("--households", got=own.households, expected="at least 1", fix="leave it out for the default"))
    given = any(a == "--config" or a.startswith("--config=") for a in rest)
    settings = parse_job_args(rest if given else ["--config", str(_root() / "configs" / "demo.toml"), *rest])
    _checkout("workflows.demo").run(settings, keep=own.keep, households=own.households)
    return 0


def _submit(name: str, argv: Sequence[str]) -> int:
    parser = _Parser(name)
    parser.add_argument("job", choices=WORKFLOWS)
    parser.add_argument("--address")
    parser.add_argument("--submission-id")
    parser.add_argument("--token-path", type=Path)
    parser.add_argument("--no-wait", action="store_true")
    own, rest = parser.parse_known_args(argv)
    settings = parse_job_args(rest)
    paths = {"workdir": settings.workdir, "data.path": settings.data.path, "data.images": settings.data.images}
    for key, path in paths.items():
        if path and not path.is_absolute():
            fix = "on the cluster it would lie in the job's temporary copy of the code"
            raise ConfigError(explain(key, got=path, expected="an absolute path that every node can reach", fix=fix))
    submit = _checkout("workflows.submit")
    submission = submit.Submission(
        own.job, rest, own.address or submit.DEFAULT_ADDRESS, own.submission_id, own.token_path, wait=not own.no_wait
    )
    return submit.run(submission)


BENCHMARKS = (
    *("gsu", "end_model", "codebooks", "train", "quality", "models", "gpu_gsu"),
    *("retrievers", "transfer", "item_index", "recommend", "serve"),
)
_SCRIPTS = {"serve": "serve_load"}
"""Benchmarks whose script has another name; `serve` is a package beside them."""


def _bench(name: str, argv: Sequence[str]) -> int:
    """A measurement of `benchmarks/`, with that script's own flags."""
    parser = _Parser(name)
    parser.add_argument("benchmark", choices=BENCHMARKS)
    own, rest = parser.parse_known_args(argv)
    module = f"benchmarks.{_SCRIPTS.get(own.benchmark, own.benchmark)}"
    script = _checkout(module)
    before, sys.argv = sys.argv, [module, *rest]
    try:
        script.main()
    finally:
        sys.argv = before
    return 0


def _versions(name: str, argv: Sequence[str]) -> int:
    from seminar.artifacts import Store

    parser = _Parser(name)
    parser.add_argument("action", nargs="?", choices=("list", "use", "rollback", "verify"), default="list")
    parser.add_argument("kind", nargs="?")
    parser.add_argument("version", nargs="?")
    words = list(takewhile(lambda token: not token.startswith("--"), argv))
    own = parser.parse_args(words)
    settings = parse_job_args(argv[len(words) :])
    store = Store(settings.workdir)
    if own.action == "list":
        return _list_versions(store, own.kind)
    if not own.kind or (own.action == "use" and not own.version):
        needs = "a kind and a version" if own.action == "use" else "a kind"
        parser.error(f"too few arguments: it needs {needs}")
    if own.action == "use":
        store.set_current(own.kind, own.version)
    elif own.action == "rollback" and own.kind == "bundle":
        # A bundle goes back with all it was made from, and in the running service first.
        _checkout("workflows.refresh").rollback(settings, store)
    elif own.action == "rollback":
        store.rollback(own.kind)
    else:
        store.open(own.kind, own.version or "current").verify()
    print(f"{own.kind}: current is {store.current(own.kind)}")
    return 0


def _list_versions(store: "Store", only: str | None) -> int:
    kinds = sorted(p.name for p in store.root.iterdir() if p.is_dir() and store.versions(p.name)) if store.root.is_dir() else []
    for kind in [only] if only else kinds:
        for version in store.versions(kind):
            manifest = store.open(kind, version).manifest
            mark = "*" if version == store.current(kind) else " "
            size = sum(entry.size_bytes for entry in manifest.files.values()) / 1e6
            inputs = " ".join(f"{ref.kind}={ref.version}" for ref in manifest.inputs.values())
            print(f"{mark} {kind:<10} {version:<14} {manifest.created[:19]}  {size:>9,.1f} MB  {inputs}")
    if not kinds:
        print(f"no artefacts in {store.root}; `seminar prepare` makes the first")
    return 0


_TRAINING = ("model", "ray")
JOBS = {
    "check": Job(
        "read a folder of canonical tables and say what is wrong with it", _check, usage="DIR [--quarantine FILE.parquet]"
    ),
    "prepare": Job("events to time-ordered query-item pairs, one file a shard", _run_job, ("data", "prepare", "ray")),
    "embed": Job("texts, images and attributes of the catalogue to vectors", _run_job, ("data", "embed", "ray")),
    "pretrain": Job("train the search unit (PSU) on pair sequences", _run_job, ("pretrain", *_TRAINING)),
    "finetune": Job("train the two-stage ranker for CTR and search", _run_job, ("finetune", *_TRAINING)),
    "fit-codebooks": Job("product quantisation of every channel, codes of the catalogue", _run_job, ("codebooks", "ray")),
    "evaluate": Job("ranking metrics beside the floors, report with plots", _run_job, ("evaluate", "ray")),
    "pretrain-retriever": Job(
        "align what the dual tower makes of any two combinations of an item's modalities",
        _run_job,
        ("pretrain_retriever", "retriever", "ray"),
    ),
    "train-retriever": Job("train the dual tower that proposes candidates", _run_job, ("train_retriever", "retriever", "ray")),
    "build-index": Job("item tower over the catalogue, an index of it, into the bundle", _run_job, ("index", "ray")),
    "evaluate-retriever": Job(
        "the whole catalogue ranked: towers, neighbours, floors, and candidates ranked by the model",
        _run_job,
        ("evaluate_retriever", "evaluate", "ray"),
    ),
    "compare": Job(
        "every model of the field on one protocol: tuned, trained, tested, one report",
        _run_job,
        ("compare", "evaluate", "pretrain", "finetune", *_TRAINING),
    ),
    "serve": Job("the scoring service on this machine", _serve, ("serve", "ray")),
    "refresh": Job("the nightly refresh: new data in, gates, publish, swap", _run_job, ("refresh", "data", "codebooks", "ray")),
    "submit": Job(
        "run a job on a cluster: log streamed, exit code passed on",
        _submit,
        usage=f"JOB [--address URL] [--submission-id KEY] [--token-path FILE] [--no-wait] {_SETTINGS}",
    ),
    "demo": Job("everything above, once, on real data", _demo, usage=f"[--households N] [--keep] {_SETTINGS}"),
    "bench": Job(
        "measure: gsu is the retrieval engine, serve the service under load, against rivals and floors",
        _bench,
        usage=f"{{{'|'.join(BENCHMARKS)}}} [flags of python -m benchmarks.NAME]",
    ),
    "versions": Job(
        "list artefacts; choose, roll back or verify a version",
        _versions,
        usage="[list [KIND] | use KIND VERSION | rollback KIND | verify KIND [VERSION]] [--workdir DIR | --config FILE]",
    ),
}
WORKFLOWS = tuple(name for name, job in JOBS.items() if job.run is _run_job)


def _find(name: str) -> Job:
    if name not in JOBS:
        near = difflib.get_close_matches(name, JOBS, n=1)
        fix = f"did you mean {near[0]!r}?" if near else "see `seminar --help`"
        raise ConfigError(explain("command", got=repr(name), expected=f"one of {', '.join(JOBS)}", fix=fix))
    return JOBS[name]


def _overview() -> str:
    lines = [f"  {name:<15}{job.summary}" for name, job in JOBS.items()]
    return "\n".join(
        [
            "usage: seminar COMMAND [--config FILE.toml] [--section.key VALUE ...]",
            "",
            "Search-enhanced multi-modal ranking over lifelong histories, from raw logs to a served score.",
            "",
            *lines,
            "",
            "`seminar COMMAND --help` lists its settings. A TOML file holds what differs from the defaults; flags win over it.",
        ]
    )


def _help(name: str, job: Job, arguments: Sequence[str]) -> None:
    if job.sections:
        from seminar.flags import print_job_help

        print_job_help(name, job.summary, job.sections, arguments)
    else:
        print(f"usage: seminar {name} {job.usage}\n\n{job.summary}")


def _root() -> Path:
    """The checkout that holds `workflows` and `serve`: this package's own, else the current folder."""
    for root in (Path(__file__).resolve().parent.parent, Path.cwd()):
        if (root / "workflows" / "runtime.py").is_file():
            return root
    raise ConfigError(
        explain(
            "this command", got="the package alone", expected="the repository", fix="run it from a checkout of the repository"
        )
    )


def _checkout(module: str) -> ModuleType:
    """A module of the checkout; its root goes first on the path, because other packages own these top-level names too."""
    root = str(_root())
    if sys.path[0] != root:
        sys.path.insert(0, root)
    return importlib.import_module(module)


class _Parser(argparse.ArgumentParser):
    """argparse whose errors are one sentence."""

    def __init__(self, name: str) -> None:
        super().__init__(prog=f"seminar {name}", add_help=False, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        usage = JOBS[self.prog.removeprefix("seminar ")].usage
        raise ConfigError(explain(self.prog, got=message, expected=usage, fix=f"see `{self.prog} --help`"))


if __name__ == "__main__":
    sys.exit(main())
