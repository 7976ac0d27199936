"""Versioned, immutable artefact folders: what a job reads and writes, traceable to its inputs' checksums.

    <root>/<kind>/<version>/manifest.json + files      published, never changed again
    <root>/<kind>/.draft-<version>/                     being written; survives a crash, so a rerun resumes
    <root>/<kind>/current.json                          {"version": ..., "previous": [...]}; replaced atomically

A version is a hash of (kind, format, inputs, settings) unless the caller names one: the same job on the same inputs finds its
own finished result or its own draft.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from seminar.errors import ArtifactError, VersionMismatch, explain

FORMAT = 2
"""Raised whenever the layout of any artefact changes; a reader refuses other formats and says both numbers."""

_MADE_BY = {
    "pairs": "prepare",
    "vectors": "embed",
    "psu": "pretrain",
    "model": "finetune",
    "codebooks": "fit-codebooks",
    "bundle": "fit-codebooks",
    "report": "evaluate",
    "towers": "pretrain-retriever",
    "retriever": "train-retriever",
    "index": "build-index",
}


class FileEntry(BaseModel):
    """Size and SHA-256 of one file of an artefact."""

    model_config = ConfigDict(frozen=True)
    size_bytes: int
    sha256: str


class InputRef(BaseModel):
    """An artefact that another one was made from."""

    model_config = ConfigDict(frozen=True)
    kind: str
    version: str
    checksum: str


class Manifest(BaseModel):
    """Everything needed to trace, verify and compare an artefact."""

    model_config = ConfigDict(frozen=True)
    kind: str
    version: str
    format: int
    created: str
    inputs: dict[str, InputRef]
    config: dict[str, Any]
    metrics: dict[str, Any]
    files: dict[str, FileEntry]

    @property
    def checksum(self) -> str:
        """SHA-256 over kind, version, inputs, settings and file hashes; not over time or metrics."""
        return _digest(self.model_dump(include={"kind", "version", "format", "inputs", "config", "files"}))


@dataclass(frozen=True)
class Artifact:
    """A published folder."""

    path: Path
    manifest: Manifest

    @classmethod
    def at(cls, path: Path) -> "Artifact":
        """The artefact in a published folder; ArtifactError if another format wrote it."""
        manifest = Manifest.model_validate_json((path / "manifest.json").read_text())
        if manifest.format != FORMAT:
            raise ArtifactError(
                explain(
                    f"{path}", got=f"format {manifest.format}", expected=f"format {FORMAT}", fix="rebuild it with this release"
                )
            )
        return cls(path, manifest)

    @property
    def version(self) -> str:
        return self.manifest.version

    @property
    def ref(self) -> InputRef:
        return InputRef(kind=self.manifest.kind, version=self.version, checksum=self.manifest.checksum)

    def file(self, name: str) -> Path:
        """Path of one file named in the manifest."""
        if name not in self.manifest.files:
            known = ", ".join(sorted(self.manifest.files)) or "no files"
            raise ArtifactError(
                explain(f"{self.path}", got=f"no file {name!r}", expected=known, fix="rebuild it with the same release")
            )
        return self.path / name

    def require_input(self, name: str, expected: "Artifact", fix: str) -> None:
        """Raise VersionMismatch, with both sides, unless the input `name` of this artefact was `expected`."""
        made_from = self.manifest.inputs[name]
        if made_from.checksum != expected.manifest.checksum:
            what, got = f"{self.manifest.kind} {self.version}", f"made from {name} {made_from.version}"
            raise VersionMismatch(explain(what, got=got, expected=f"{name} {expected.version}", fix=fix))

    def verify(self) -> None:
        """Re-hash every file; raise ArtifactError naming the first that differs."""
        for name, entry in self.manifest.files.items():
            path = self.path / name
            got = sha256_of(path) if path.is_file() else "no such file"
            if got != entry.sha256:
                raise ArtifactError(
                    explain(f"{path}", got=got[:16], expected=f"sha256 {entry.sha256[:16]}", fix="copy or rebuild it")
                )


@dataclass(frozen=True)
class Draft:
    """A folder being written; files already there are those of an interrupted run with the same version."""

    path: Path
    kind: str
    version: str
    inputs: dict[str, InputRef]
    config: dict[str, Any]


class Store:
    """All artefacts under one root folder (local disk or a shared mount)."""

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)

    def version_of(self, kind: str, inputs: Mapping[str, Artifact], config: Mapping[str, Any]) -> str:
        """Deterministic version: 12 hex digits over kind, format, inputs' checksums and settings."""
        refs = {name: artifact.manifest.checksum for name, artifact in sorted(inputs.items())}
        return _digest({"kind": kind, "format": FORMAT, "inputs": refs, "config": dict(config)})[:12]

    def draft(
        self,
        kind: str,
        inputs: Mapping[str, Artifact],
        config: Mapping[str, Any],
        version: str | None = None,
    ) -> Draft:
        """Open (or reopen) the draft folder of a version."""
        version = version or self.version_of(kind, inputs, config)
        path = self.root / kind / f".draft-{version}"
        path.mkdir(parents=True, exist_ok=True)
        refs = {name: artifact.ref for name, artifact in inputs.items()}
        return Draft(path, kind, version, refs, _plain(config))

    def publish(self, draft: Draft, metrics: Mapping[str, Any] | None = None, *, current: bool = True) -> Artifact:
        """Hash all files, write the manifest, rename the draft into place, and make it current unless told not to.

        Names that start with '.' or '_' are scratch and are deleted. Publishing an existing version returns the existing one.
        """
        final = self.root / draft.kind / draft.version
        if not final.exists():
            for path in list(draft.path.iterdir()):
                if path.name.startswith((".", "_")):
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
            files = {
                str(path.relative_to(draft.path)): FileEntry(size_bytes=path.stat().st_size, sha256=sha256_of(path))
                for path in sorted(draft.path.rglob("*"))
                if path.is_file() and path.name != "manifest.json"
            }
            manifest = Manifest(
                kind=draft.kind,
                version=draft.version,
                format=FORMAT,
                created=datetime.now(UTC).isoformat(timespec="seconds"),
                inputs=draft.inputs,
                config=draft.config,
                metrics=_plain(metrics or {}),
                files=files,
            )
            write_atomically(draft.path / "manifest.json", manifest.model_dump_json(indent=2))
            os.replace(draft.path, final)
        if current:
            self.set_current(draft.kind, draft.version)
        return self.open(draft.kind, draft.version)

    def open(self, kind: str, version: str = "current") -> Artifact:
        """A published artefact by version, or the current one."""
        if version == "current":
            version = self.current(kind)
        path = self.root / kind / version
        if not (path / "manifest.json").is_file():
            known = ", ".join(self.versions(kind)) or "none"
            raise ArtifactError(
                explain(
                    f"{kind} in {self.root}", got=f"version {version!r}", expected=f"one of: {known}", fix="check the version"
                )
            )
        return Artifact.at(path)

    def exists(self, kind: str, version: str) -> bool:
        return (self.root / kind / version / "manifest.json").is_file()

    def versions(self, kind: str) -> list[str]:
        """Published versions, oldest first."""
        folder = self.root / kind
        found = [p for p in folder.iterdir() if (p / "manifest.json").is_file()] if folder.is_dir() else []
        found = [p for p in found if not p.name.startswith(".")]
        return [p.name for p in sorted(found, key=lambda p: ((p / "manifest.json").stat().st_mtime_ns, p.name))]

    def current(self, kind: str) -> str:
        """Version that is in use."""
        return self._pointer(kind)["version"]

    def in_use(self, kind: str) -> Artifact | None:
        """The current artefact, None where nothing is current."""
        return self.open(kind) if (self.root / kind / "current.json").is_file() else None

    def previous(self, kind: str) -> list[str]:
        """Versions in use before the current one, newest first; none where nothing is current."""
        return self._pointer(kind)["previous"] if (self.root / kind / "current.json").is_file() else []

    def set_current(self, kind: str, version: str) -> None:
        """Point `current` at a published version; the one before is kept for rollback."""
        if not self.exists(kind, version):
            raise ArtifactError(
                explain(f"current {kind}", got=f"version {version!r}", expected="a published version", fix="publish it first")
            )
        pointer = self.root / kind / "current.json"
        previous: list[str] = []
        if pointer.is_file():
            old = json.loads(pointer.read_text())
            if old["version"] == version:
                return
            previous = [old["version"], *(v for v in old["previous"] if v != version)]
        write_atomically(pointer, json.dumps({"version": version, "previous": previous[:20]}))

    def rollback(self, kind: str) -> str:
        """Go back to the version in use before the current one; returns it."""
        pointer = self._pointer(kind)
        if not pointer["previous"]:
            raise ArtifactError(
                explain(
                    f"rollback of {kind}",
                    got="no earlier version",
                    expected="at least one",
                    fix="publish twice before rolling back",
                )
            )
        version, *rest = pointer["previous"]
        write_atomically(self.root / kind / "current.json", json.dumps({"version": version, "previous": rest}))
        return version

    def _pointer(self, kind: str) -> dict[str, Any]:
        pointer = self.root / kind / "current.json"
        if not pointer.is_file():
            raise ArtifactError(
                explain(
                    f"{kind} in {self.root}",
                    got="nothing published",
                    expected="a current version",
                    fix=f"run `seminar {_MADE_BY[kind]}`" if kind in _MADE_BY else f"run the job that makes {kind}",
                )
            )
        return json.loads(pointer.read_text())


def write_atomically(path: Path, text: str) -> None:
    """Readers see the old content or the new, never a part; durable before it returns."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with open(temporary, "w") as handle:
        handle.write(text)
        handle.flush()
        os.fsync(handle.fileno())
    os.replace(temporary, path)


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a file."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _plain(value: Mapping[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(dict(value), default=str))


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
