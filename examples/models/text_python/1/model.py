"""Normalizes text: Unicode normal form, case folded, white space collapsed to single blanks."""

import unicodedata
from typing import Any

import numpy as np

FORMS = ("NFC", "NFD", "NFKC", "NFKD")


class Model:
    """`TEXT` BYTES [rows, 1], UTF-8 -> `NORMALIZED` BYTES [rows, 1], UTF-8."""

    def load(self, context: Any) -> None:
        """Takes the normal form from config.pbtxt's parameter `form`."""
        self.form = context.parameters.get("form", "NFKC")
        if self.form not in FORMS:
            raise ValueError(f"parameter form: expected one of {', '.join(FORMS)}, got {self.form}")

    def infer(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        texts = inputs["TEXT"]
        normalized = np.empty(texts.shape, dtype=object)
        for index, text in np.ndenumerate(texts):
            normalized[index] = self._normalize(text)
        return {"NORMALIZED": normalized}

    def unload(self) -> None:
        """Holds nothing that has to be given back."""

    def _normalize(self, text: bytes) -> bytes:
        # One caller's bad bytes must not fail the texts it is batched with.
        decoded = text.decode("utf-8", errors="replace")
        return " ".join(unicodedata.normalize(self.form, decoded).casefold().split()).encode()
