"""`--config FILE --section.key value ...` to Settings: the file first, then flags, then one validation of the whole.

Flags overlay the file before anything is checked, so a flag may complete a file that is not valid alone (`--data.path DIR`), and
a mistyped flag and a mistyped TOML key get the same kind of sentence. tyro draws the help from the same models.
"""

import difflib
from collections.abc import Sequence
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_origin

from pydantic import BaseModel, create_model

from seminar.config import Settings, load_settings
from seminar.errors import ConfigError, explain


def parse_job_args(argv: Sequence[str]) -> Settings:
    """Settings of one job from the arguments behind its name.

    Values are written as in TOML without quotes; several values (`--model.hidden 128 64`) fill a list, `none` empties an optional
    setting, a switch alone means true. Raises ConfigError (one sentence) for an unknown flag, with the nearest known one.
    """
    config: Path | None = None
    overrides: dict[str, Any] = {}
    fields = settings_fields()
    for name, values in _split(argv):
        if name == "config":
            if len(values) != 1:
                raise ConfigError(explain("--config", got=f"{len(values)} values", expected="one TOML file", fix="give one path"))
            config = Path(values[0])
            continue
        if name not in fields:
            raise ConfigError(explain("flag", got=f"--{name}", expected="a setting", fix=_suggest(name, list(fields))))
        *sections, key = name.split(".")
        target = overrides
        for section in sections:
            target = target.setdefault(section, {})
        target[key] = _value(name, values, fields[name])
    return load_settings(config, overrides)


def settings_fields(model: type[BaseModel] = Settings, prefix: str = "") -> dict[str, Any]:
    """Dotted name -> type of every setting."""
    fields: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            fields |= settings_fields(field.annotation, f"{prefix}{name}.")
        else:
            fields[prefix + name] = field.annotation
    return fields


def print_job_help(job: str, summary: str, sections: Sequence[str], argv: Sequence[str]) -> None:
    """Usage of one job: the settings it reads, with what they are after --config and other flags in `argv`."""
    import tyro

    settings = parse_job_args(argv)
    fields = {name: Settings.model_fields[name] for name in ("workdir", *sections)}
    typed: dict[str, Any] = {name: (field.annotation, field) for name, field in fields.items()}
    model = create_model(job, **typed)
    shown = model.model_construct(**{name: getattr(settings, name) for name in fields})
    notes = "--config FILE.toml holds what differs from the defaults; flags win over it. Settings of other jobs may be given too."
    try:
        tyro.cli(
            model,
            args=["--help"],
            default=shown,
            prog=f"seminar {job} [--config FILE]",
            description=f"{summary}\n\n{notes}",
            config=(tyro.conf.FlagConversionOff,),
            use_underscores=True,
        )
    except SystemExit:
        return


def _split(argv: Sequence[str]) -> list[tuple[str, list[str]]]:
    flags: list[tuple[str, list[str]]] = []
    for token in argv:
        if token.startswith("--") and len(token) > 2:
            name, equals, value = token[2:].partition("=")
            flags.append((name.replace("-", "_"), [value] if equals else []))
        elif flags:
            flags[-1][1].append(token)
        else:
            fix = "flags start with two dashes"
            raise ConfigError(explain("arguments", got=repr(token), expected="--config or --section.key", fix=fix))
    return flags


def _value(name: str, values: list[str], annotation: Any) -> Any:
    options = (annotation, *get_args(annotation))
    if [value.lower() for value in values] == ["none"] and NoneType in options:
        return None
    if get_origin(annotation) is tuple:
        return [part for value in values for part in value.split(",") if part]
    if not values and bool in options:
        return True
    if len(values) != 1:
        raise ConfigError(explain(f"--{name}", got=f"{len(values)} values", expected="one", fix=f"write --{name} VALUE"))
    return values[0]


def _suggest(name: str, known: list[str]) -> str:
    """The full names nearest to `name`; a key without its section finds every section that has it, or nearly."""
    keys = {full: full.rpartition(".")[2] for full in known}
    key = name.rpartition(".")[2]
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.75)
    for candidate in [key, *difflib.get_close_matches(key, keys.values(), n=1)]:
        near = near or [full for full in known if keys[full] == candidate][:4]
    return f"did you mean {' or '.join(f'--{full}' for full in near)}?" if near else "see `seminar <job> --help`"
