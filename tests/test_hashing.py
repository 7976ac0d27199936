"""The hash that spreads users over shards never changes."""

import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest

from seminar.hashing import mix64, stable_hash

MASK = 2**64 - 1


def reference(text: str) -> int:
    """The definition, one string and one integer at a time."""

    def mix(z: int) -> int:
        z = (z + 0x9E3779B97F4A7C15) & MASK
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        return z ^ (z >> 31)

    octets = text.encode()
    h = mix(len(octets) ^ 0x9E3779B97F4A7C15)
    for start in range(0, len(octets), 8):
        h = mix(h ^ int.from_bytes(octets[start : start + 8], "little"))
    return h


def test_hash_equals_its_definition() -> None:
    rng = np.random.default_rng(0)
    texts = ["", "a", "12345678", "123456789", "åäö🍋", "x" * 1000, "nul\0", "nul"]
    texts += ["".join(map(chr, rng.integers(32, 1000, length))) for length in range(40)]
    assert stable_hash(texts).tolist() == [reference(t) for t in texts]


def test_hash_never_changes() -> None:
    known = [0x6E789E6AA1B965F4, 0x333BDA43BEBC7927, 0x67872C29BAFBE0A9, 0x8C3955CD98EBACF1, 0x16E9A40A0E956CE3]
    assert stable_hash(["", "a", "12345678", "123456789", "user-1"]).tolist() == known
    assert mix64(np.array([0], np.uint64)).tolist() == [0xE220A8397B1DCDAF], "first output of SplitMix64 from state 0"


def test_hash_is_the_same_in_another_process() -> None:
    code = "from seminar.hashing import stable_hash; print(stable_hash(['user-1'])[0])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": "7"})
    assert int(out.stdout) == stable_hash(["user-1"])[0]


def test_hash_does_not_depend_on_how_the_column_is_stored() -> None:
    expected = stable_hash(["b", "", "long enough for two words"])
    column = pa.array(["a", "b", "", "long enough for two words"])
    for stored in (
        column[1:],
        column[1:].cast(pa.large_string()),
        column[1:].cast(pa.string_view()),
        column[1:].cast(pa.binary()),
        pa.chunked_array([column[1:2], column[2:]]),
        column[1:].dictionary_encode(),
        np.array(["b", "", "long enough for two words"]),
    ):
        assert np.array_equal(stable_hash(stored), expected)
    assert stable_hash([]).shape == (0,)


def test_hash_spreads_consecutive_ids_evenly() -> None:
    counts = np.bincount((stable_hash([str(i) for i in range(100_000)]) % np.uint64(64)).astype(int), minlength=64)
    chi2 = ((counts - counts.mean()) ** 2 / counts.mean()).sum()
    assert 30 < chi2 < 110, "63 degrees of freedom: mean 63, standard deviation 11"


def test_hash_refuses_null() -> None:
    with pytest.raises(ValueError, match="null"):
        stable_hash(pa.array(["a", None]))
