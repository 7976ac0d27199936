"""`python -m workflows <job> --config x.toml [--section.key value ...]`: one job, here or under `ray job submit`."""

import difflib
import importlib
import sys
from collections.abc import Sequence

from seminar.artifacts import Store
from seminar.errors import ConfigError, SeminarError, explain

JOBS = (
    *("prepare", "embed", "pretrain", "finetune", "fit-codebooks", "evaluate", "compare", "refresh"),
    *("pretrain-retriever", "train-retriever", "build-index", "evaluate-retriever"),
)


def main(argv: Sequence[str]) -> int:
    """Run the job named first; 0, or 2 after one sentence about an error in input, settings or artefacts."""
    if not argv or argv[0] in ("-h", "--help"):
        print(f"usage: python -m workflows {{{','.join(JOBS)}}} [--config FILE] [--section.key VALUE ...]")
        return 0 if argv else 2
    try:
        run_job(argv[0], argv[1:])
    except SeminarError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def run_job(job: str, arguments: Sequence[str]) -> None:
    """Parse the settings, import the one job that is needed and run it."""
    if job not in JOBS:
        near = difflib.get_close_matches(job, JOBS, n=1)
        fix = f"did you mean {near[0]!r}?" if near else "run it with --help"
        raise ConfigError(explain("job", got=repr(job), expected=f"one of {', '.join(JOBS)}", fix=fix))
    from seminar.cli import parse_job_args

    settings = parse_job_args(arguments)
    # Ray and torch are imported with the job, so that a mistyped setting is answered at once.
    module = importlib.import_module(f"workflows.{job.replace('-', '_')}")
    from workflows.runtime import absolute

    settings = absolute(settings)
    artifact = module.run(settings, Store(settings.workdir))
    print(f"{job}: {artifact.path}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
