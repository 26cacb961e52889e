"""Texts as the inputs of a bundle's base."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from tokenizers import Tokenizer

from adapter_export.errors import RequestError
from adapter_export.runtime import Bundle


class Texts:
    """A bundle's tokenizer."""

    def __init__(self, bundle: Bundle) -> None:
        record = bundle.manifest.text
        if record is None:
            raise RequestError("this bundle has no tokenizer", where=bundle.folder, fix="send `inputs`")
        self._names = [each.name for each in bundle.manifest.inputs]
        self._tokenizer = Tokenizer.from_file(str(bundle.folder / record.tokenizer))
        self._tokenizer.enable_truncation(record.max_tokens)
        self._tokenizer.no_padding()  # the session pads as far as it must

    def rows(self, texts: Sequence[str]) -> dict[str, list[np.ndarray]]:
        """For each input an array [tokens] of each text, as long as the text is."""
        if not texts:
            raise RequestError("there is no text", expected="at least one")
        encodings = self._tokenizer.encode_batch(list(texts))
        columns = {
            "input_ids": [each.ids for each in encodings],
            "attention_mask": [each.attention_mask for each in encodings],
            "token_type_ids": [each.type_ids for each in encodings],
        }
        return {name: [np.array(row, np.int64) for row in columns[name]] for name in self._names}
