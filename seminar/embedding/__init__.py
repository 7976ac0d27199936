"""Content encoders: catalogue texts and images to unit vectors, once a distinct content, offline, missing content as a mask."""

from seminar.embedding.base import Encoded, EncoderSpec, unit_rows
from seminar.embedding.text import TextEncoder, clean_text, open_text_encoder

__all__ = ["Encoded", "EncoderSpec", "TextEncoder", "clean_text", "open_text_encoder", "unit_rows"]
