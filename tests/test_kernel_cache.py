"""Compiled kernels are found again only while everything they are made of is the same."""

import shutil
from pathlib import Path

import numba

import seminar.kernels
from seminar.kernels import cache_folder, int8

SOURCES = Path(seminar.kernels.__file__).parent


def test_a_change_of_any_part_is_another_cache(tmp_path: Path) -> None:
    copied = shutil.copytree(SOURCES, tmp_path / "kernels", ignore=shutil.ignore_patterns("__pycache__"))
    before = cache_folder(copied)
    assert before.name == cache_folder(SOURCES).name
    (copied / "select.py").write_text((copied / "select.py").read_text() + "\n")
    assert cache_folder(copied) != before


def test_kernels_use_it() -> None:
    chosen = Path(numba.config.CACHE_DIR)
    assert Path(int8.top_k._cache.cache_path).is_relative_to(chosen)
