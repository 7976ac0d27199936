"""The command line: what a stranger types, and what it answers when they mistype it."""

import os
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import pytest

from seminar import cli, flags
from seminar.artifacts import Artifact, Store
from seminar.cli import main, parse_job_args
from seminar.config import Settings, load_settings
from seminar.errors import ArtifactError, ConfigError

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = sorted((ROOT / "configs").glob("*.toml"))


def complaint(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """The one sentence that `seminar argv` answers on standard error, with exit code 2."""
    assert main(argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    return err


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "mine.toml"
    path.write_text('workdir = "runs/mine"\n[pretrain]\nsteps = 7\nlanes = 4\n[data]\nsource = "tables"\n')
    return path


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_config_file_is_valid_and_holds_only_differences(path: Path) -> None:
    import tomllib

    settings, defaults = load_settings(path), Settings()
    assert settings.workdir == Path("runs") / path.stem, "two configs must not share artefacts by accident"
    for section, values in tomllib.loads(path.read_text()).items():
        if isinstance(values, dict) and section != "data":  # the data section is written out: it says what is read
            for key in values:
                assert getattr(getattr(settings, section), key) != getattr(getattr(defaults, section), key), f"{section}.{key}"


def test_there_are_configs_for_the_demo_the_whole_data_and_own_tables() -> None:
    assert {"demo.toml", "complete_journey.toml", "tables.toml"} <= {path.name for path in CONFIGS}


def test_flags_win_over_the_file_and_the_file_over_defaults(config: Path) -> None:
    settings = parse_job_args(["--config", str(config), "--pretrain.steps", "300", "--data.path=/logs"])
    assert (settings.pretrain.steps, settings.pretrain.lanes) == (300, 4)
    assert settings.pretrain.learning_rate == Settings().pretrain.learning_rate
    assert settings.workdir == Path("runs/mine")


def test_a_flag_may_complete_a_file_that_is_not_valid_alone(config: Path) -> None:
    with pytest.raises(ConfigError, match=r"needs data\.path"):
        parse_job_args(["--config", str(config)])
    assert parse_job_args(["--config", str(config), "--data.path", "/logs"]).data.path == Path("/logs")


def test_narrowing_the_data_keeps_the_default_source() -> None:
    narrowed = parse_job_args(["--data.max_users", "100"]).data
    assert (narrowed.source, narrowed.max_users) == (Settings().data.source, 100)
    assert parse_job_args(["--data.path", "/logs"]).data.source == "tables"


def test_values_of_every_type_are_read() -> None:
    settings = parse_job_args(
        [
            *("--model.hidden", "256", "128", "--model.simtier", "false", "--model.freeze-psu", "--data.max_users", "none"),
            *("--data.until", "2017-11-20T00:00:00Z", "--pretrain.learning_rate", "1e-3", "--data.query_setting", "none"),
        ]
    )
    assert settings.model.hidden == (256, 128)
    assert parse_job_args(["--model.hidden", "64"]).model.hidden == (64,)
    assert parse_job_args(["--model.hidden=8,4"]).model.hidden == (8, 4)
    assert (settings.model.simtier, settings.model.freeze_psu) == (False, True)
    assert settings.data.max_users is None
    assert settings.data.query_setting == "none"
    assert settings.data.until == datetime(2017, 11, 20, tzinfo=UTC)
    assert settings.pretrain.learning_rate == 1e-3


@pytest.mark.parametrize(
    ("argv", "answer"),
    [
        (["preprare"], "did you mean 'prepare'?"),
        (["pretrain", "--pretrain.step", "3"], "did you mean --pretrain.steps?"),
        (["pretrain", "--steps", "3"], "did you mean --pretrain.steps or --finetune.steps or"),
        (["pretrain", "--pretrain.steps", "abc"], "pretrain.steps: got 'abc'"),
        (["pretrain", "--pretrain.steps"], "--pretrain.steps: got 0 values"),
        (["pretrain", "--pretrain.lanes", "3", "--pretrain.num_workers", "2"], "num_workers (2) must divide lanes (3)"),
        (["pretrain", "stray"], "flags start with two dashes"),
        (["pretrain", "--config", "absent.toml"], "no such file"),
        (["check"], "DIR"),
        (["check", "absent-folder"], "absent-folder"),
        (["submit", "pretrian"], "pretrain"),
        (["submit", "pretrain", "--pretrain.step", "3"], "did you mean --pretrain.steps?"),
        (["submit", "pretrain"], "workdir: got runs/default, expected an absolute path"),
        (["demo", "--households", "0"], "at least 1"),
        (["versions", "rollback"], "a kind"),
    ],
)
def test_a_slip_is_answered_with_one_sentence(capsys: pytest.CaptureFixture[str], argv: list[str], answer: str) -> None:
    assert answer in complaint(capsys, *argv)


def test_unknown_key_in_a_file_is_answered_with_the_near_name(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "typo.toml"
    path.write_text("[pretrain]\nstep = 3\n")
    answer = complaint(capsys, "pretrain", "--config", str(path))
    assert "did you mean 'steps'?" in answer
    assert "typo.toml" in answer


def test_config_that_cannot_be_read_is_one_sentence(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "Is a directory" in complaint(capsys, "pretrain", "--config", str(tmp_path))
    latin = tmp_path / "latin.toml"
    latin.write_bytes('workdir = "kör"'.encode("latin-1"))
    answer = complaint(capsys, "pretrain", "--config", str(latin))
    assert "latin.toml: got a byte that is not UTF-8 at position 12" in answer


def test_failure_of_the_file_system_is_one_sentence(capsys: pytest.CaptureFixture[str], store: Store) -> None:
    name = "x" * 300
    assert complaint(capsys, "check", name) == f"error: {name}: File name too long\n"
    version = published(store, 1).version
    pointer = store.root / "pairs" / "current.json"
    pointer.unlink()
    pointer.mkdir()
    assert ": Is a directory" in complaint(capsys, "versions", "use", "pairs", version, "--workdir", str(store.root))


def dataset(path: Path, labels: list[object]) -> Path:
    path.mkdir()
    rows = [f"u,i{n},{1_600_000_000_000 + n},{label}\n" for n, label in enumerate(labels)]
    (path / "events.csv").write_text("user_id,item_id,time_ms,label\n" + "".join(rows))
    (path / "items.csv").write_text("item_id\ni0\n")
    return path


@pytest.mark.parametrize(
    ("labels", "said"), [([], "no good row"), ([7, 8], "no good row and 2 quarantined"), ([0, 0], "all with label 0")]
)
def test_check_of_tables_without_any_behaviour_fails_after_its_report(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, labels: list[object], said: str
) -> None:
    assert main(["check", str(dataset(tmp_path / "d", labels)), "--quarantine", str(tmp_path / "q.parquet")]) == 2
    out, err = capsys.readouterr()
    assert "good rows" in out
    assert said in err
    assert err.count("\n") == 1
    assert (tmp_path / "q.parquet").is_file()


def test_check_with_one_behaviour_passes(tmp_path: Path) -> None:
    assert main(["check", str(dataset(tmp_path / "d", [0, 1]))]) == 0


def test_quarantine_that_cannot_be_written_is_refused_before_the_check(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    data = str(dataset(tmp_path / "d", [1]))
    assert "got a folder" in complaint(capsys, "check", data, "--quarantine", str(tmp_path))
    assert "does not exist" in complaint(capsys, "check", data, "--quarantine", str(tmp_path / "new" / "q.parquet"))
    assert [p.name for p in tmp_path.iterdir()] == ["d"]


def test_missing_artefact_names_the_command_that_makes_it(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="run `seminar fit-codebooks`"):
        Store(tmp_path).open("bundle")


def test_help_lists_every_job_and_loads_nothing_heavy() -> None:
    heavy = "{'torch', 'ray', 'pyarrow', 'pydantic', 'tyro'}"
    code = f"import sys; from seminar.cli import main; main(['--help']); print({heavy} & set(sys.modules))"
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert time.perf_counter() - started < 1
    assert done.stdout.endswith("set()\n")
    jobs = "check prepare embed pretrain finetune fit-codebooks evaluate serve refresh submit demo versions"
    for job in jobs.split():
        assert f"\n  {job} " in done.stdout


@pytest.mark.parametrize("job", cli.JOBS)
def test_help_of_every_job_works(capsys: pytest.CaptureFixture[str], job: str) -> None:
    assert main([job, "--help"]) == 0
    shown = capsys.readouterr().out
    assert f"seminar {job}" in shown
    for section in cli.JOBS[job].sections:
        assert f"--{section}." in shown


def test_help_shows_what_a_file_sets(capsys: pytest.CaptureFixture[str], config: Path) -> None:
    main(["pretrain", "--config", str(config), "--data.path", "/logs", "--help"])
    assert "(default: 7)" in capsys.readouterr().out


def test_every_workflow_job_of_the_command_line_is_one_of_the_module() -> None:
    from workflows.__main__ import JOBS

    assert set(cli.WORKFLOWS) == set(JOBS)


def test_without_a_checkout_the_command_says_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(cli, "__file__", str(tmp_path / "site-packages" / "seminar" / "cli.py"))
    monkeypatch.chdir(tmp_path)
    assert "checkout of the repository" in complaint(capsys, "prepare")


def test_console_script_finds_the_checkout_from_any_folder(tmp_path: Path) -> None:
    script = Path(sys.executable).with_name("seminar")
    done = subprocess.run([script, "prepare", "--steps", "3"], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, "did you mean" in done.stderr) == (2, True), done.stderr


def published(store: Store, number: int) -> Artifact:
    draft = store.draft("pairs", {}, {"number": number})
    (draft.path / "data.bin").write_bytes(bytes(number))
    return store.publish(draft)


def test_versions_lists_chooses_rolls_back_and_verifies(capsys: pytest.CaptureFixture[str], store: Store) -> None:
    old, new = published(store, 1), published(store, 2)
    root = ["--workdir", str(store.root)]
    assert main(["versions", *root]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line[0] for line in lines] == [" ", "*"]
    assert main(["versions", "rollback", "pairs", *root]) == 0
    assert store.current("pairs") == old.version
    assert main(["versions", "use", "pairs", new.version, *root]) == 0
    assert store.current("pairs") == new.version
    assert main(["versions", "verify", "pairs", *root]) == 0
    (new.path / "data.bin").write_bytes(b"damaged")
    capsys.readouterr()
    assert "sha256" in complaint(capsys, "versions", "verify", "pairs", *root)


class Cluster:
    """The jobs API of a head, as far as submitting needs it."""

    def __init__(self, **jobs: tuple[str, str]) -> None:
        self.jobs = jobs

    def list_jobs(self) -> list[SimpleNamespace]:
        status = lambda value: SimpleNamespace(value=value)  # noqa: E731
        return [SimpleNamespace(submission_id=n, entrypoint=e, status=status(s)) for n, (e, s) in self.jobs.items()]

    def delete_job(self, name: str) -> None:
        del self.jobs[name]

    def submit_job(self, *, entrypoint: str, submission_id: str, **_: object) -> str:
        assert submission_id not in self.jobs
        self.jobs[submission_id] = (entrypoint, "PENDING")
        return submission_id


ENTRYPOINT = "python -m workflows refresh --config 'my config.toml'"


@pytest.mark.parametrize(("status", "after"), [("RUNNING", "RUNNING"), ("SUCCEEDED", "SUCCEEDED"), ("FAILED", "PENDING")])
def test_submission_id_is_an_idempotency_key(status: str, after: str) -> None:
    from workflows.submit import Submission, _submit

    cluster = Cluster(night=(ENTRYPOINT, status))
    submission = Submission("refresh", ["--config", "my config.toml"], submission_id="night")
    assert submission.entrypoint == ENTRYPOINT
    assert _submit(cluster, submission, ROOT) == "night"
    assert cluster.jobs == {"night": (ENTRYPOINT, after)}


def test_submission_id_of_another_job_is_refused() -> None:
    from workflows.submit import Submission, _submit

    cluster = Cluster(night=("python -m workflows prepare", "SUCCEEDED"))
    with pytest.raises(ConfigError, match="one job an id"):
        _submit(cluster, Submission("refresh", [], submission_id="night"), ROOT)


def test_submissions_without_an_id_never_collide() -> None:
    from workflows.submit import Submission, _submit

    cluster = Cluster()
    for _ in range(3):
        _submit(cluster, Submission("prepare", []), ROOT)
    assert len(cluster.jobs) == 3


def test_config_that_does_not_travel_to_the_cluster_is_refused(tmp_path: Path) -> None:
    from workflows.submit import Submission, run

    (tmp_path / "inside").mkdir()
    (tmp_path / "outside.toml").touch()
    with pytest.raises(ConfigError, match="inside it"):
        run(Submission("prepare", ["--config", "../outside.toml"]), tmp_path / "inside")


def test_cluster_that_does_not_answer_is_one_sentence() -> None:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    command = [sys.executable, "-m", "seminar.cli", "submit", "embed", "--workdir", "/shared", "--address", "http://127.0.0.1:9"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert "no answer" in done.stderr


def test_nearest_names_are_full_settings() -> None:
    known = list(flags.settings_fields())
    near = {"pretrain.stepz": "pretrain.steps", "top_k": "model.top_k", "num_subquantisers": "codebooks.num_subquantizers"}
    for slip, wanted in near.items():
        assert f"--{wanted}" in flags._suggest(slip, known)


def test_bench_runs_a_measurement_with_its_own_flags(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    import benchmarks.gsu

    seen: list[list[str]] = []
    monkeypatch.setattr(benchmarks.gsu, "main", lambda: seen.append(list(sys.argv)))
    before = list(sys.argv)
    assert main(["bench", "gsu", "--quick", "--worlds", "gaussian"]) == 0
    assert seen == [["benchmarks.gsu", "--quick", "--worlds", "gaussian"]]
    assert sys.argv == before
    assert "'gus'" in complaint(capsys, "bench", "gus")
