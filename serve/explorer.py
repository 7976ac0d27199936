"""The explorer's page at /explorer/: the files of `serve/web/`, from memory.

The page is always asked for again and answered 304 if it is the same; what it names carries a digest of all files in its address,
so browsers keep that for a year and never mix two versions. The policy lets in nothing of another origin and no inline code.
"""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from fastapi import APIRouter, Request, Response
from starlette.exceptions import HTTPException

WEB = Path(__file__).resolve().parent / "web"
PAGE = "index.html"
ASSETS = "assets"
"""What the page calls the folder of its files; each answer puts their digest there instead."""

_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
}
_YEAR = "public, max-age=31536000, immutable"


@dataclass(frozen=True)
class Site:
    """Files of a folder by their path inside it."""

    files: dict[str, bytes]

    @classmethod
    def read(cls, folder: Path = WEB) -> "Site":
        paths = sorted(path for path in folder.rglob("*") if path.suffix in _TYPES)
        return cls({path.relative_to(folder).as_posix(): path.read_bytes() for path in paths})

    @cached_property
    def digest(self) -> str:
        """Changes with any file."""
        parts = (f"{name}\0{hashlib.sha256(content).hexdigest()}\n" for name, content in self.files.items())
        return hashlib.sha256("".join(parts).encode()).hexdigest()[:16]

    @cached_property
    def page(self) -> bytes:
        """The page, its files named by the digest."""
        return self.files[PAGE].replace(f'"{ASSETS}/'.encode(), f'"{self.digest}/'.encode())


def explorer_routes(site: Site) -> APIRouter:
    """`/` leads to the page. Addresses are relative, so it also works behind a prefix."""
    router = APIRouter(include_in_schema=False)

    @router.api_route("/", methods=["GET", "HEAD"])
    @router.api_route("/explorer", methods=["GET", "HEAD"])
    async def home() -> Response:
        return Response(status_code=307, headers={"Location": "explorer/", **_HEADERS})

    @router.api_route("/explorer/", methods=["GET", "HEAD"])
    async def page(request: Request) -> Response:
        return _file(request, PAGE, site.page, "no-cache")

    @router.api_route("/explorer/{version}/{name:path}", methods=["GET", "HEAD"])
    async def asset(request: Request, version: str, name: str) -> Response:
        if name == PAGE or name not in site.files:
            raise HTTPException(404, "no such file")
        # While a new version rolls out, a page of the other one may ask here; what it gets must not stay.
        return _file(request, name, site.files[name], _YEAR if version == site.digest else "no-cache")

    return router


def _file(request: Request, name: str, content: bytes, keep: str) -> Response:
    tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    headers = {"ETag": tag, "Cache-Control": keep, **_HEADERS}
    known = [one.strip().removeprefix("W/") for one in request.headers.get("if-none-match", "").split(",")]
    if tag in known or "*" in known:
        return Response(status_code=304, headers=headers)
    return Response(content, headers=headers, media_type=_TYPES[Path(name).suffix])
