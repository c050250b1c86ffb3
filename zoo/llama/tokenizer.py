"""Text to token ids and back, by the checkpoint's own tokenizer.json or tokenizer.model; chat by its own template.

`tokenizers` is the library with which published tokenizers were made; templates run in jinja2's sandbox, since they are
programs that came with a download.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from zoo.core.errors import WeightsError
from zoo.hub.files import read_json
from zoo.hub.refs import Checkpoint
from zoo.llama import vocabulary
from zoo.llama.long_text import encoded

FILE = "tokenizer.json"
LIMIT = 256 << 20
"""Bytes of a tokenizer.json; the largest published take 35 MB."""


class Tokenizer:
    """Of one checkpoint. `bos` and `stops` are token ids: where text begins, and where an answer ends."""

    def __init__(self, directory: Path | None, vocab_size: int, config_ids: tuple[Any, Any] = (None, None)):
        """`directory` holds tokenizer.json, and beside it tokenizer_config.json and generation_config.json where there
        are such; config_ids are (bos_token_id, eos_token_id) of config.json.

        Raises WeightsError if there is no tokenizer, it cannot be read, or it has more tokens than the model.
        """
        self._core = _read(directory, vocab_size)
        assert directory is not None
        self._directory = directory
        self._config = _optional(directory / "tokenizer_config.json")
        generation = _optional(directory / "generation_config.json")
        if (size := self._core.get_vocab_size(with_added_tokens=True)) > vocab_size:
            raise WeightsError(
                f"cannot use the tokenizer in {directory}",
                f"it has {size:,} tokens, the model has embeddings for {vocab_size:,}",
                "Use the tokenizer that belongs to this checkpoint.",
            )
        bos, eos = config_ids
        stops = _ids(generation.get("eos_token_id")) or _ids(eos) or self._named_ids("eos_token")
        self.stops = frozenset(stops)
        self.bos = next(iter(_ids(generation.get("bos_token_id")) or _ids(bos) or self._named_ids("bos_token")), None)
        self.generation: Mapping[str, Any] = generation
        """generation_config.json: how its authors sample."""

    def encode(self, text: str) -> list[int]:
        """Ids of a text, with what the tokenizer puts before it (a beginning-of-text token). An empty text is that
        token alone.  Raises WeightsError if there is then no token at all."""
        ids: list[int] = self._core.encode(text).ids
        if not ids and self.bos is not None:
            ids = [self.bos]
        if not ids:
            why = "an empty prompt has no token, and this tokenizer has none to begin with"
            raise WeightsError("nothing to continue", why, "Give a prompt.")
        return ids

    def encode_long(self, read: Callable[[int], str]) -> Iterator[np.ndarray]:
        """The same ids, in pieces, of a text of any length, of which `read(n)` gives the next n characters."""
        return encoded(self._core, read)

    def fingerprint(self) -> str:
        """The same for tokenizers that make the same ids of everything, and for no others."""
        parts = [self._core.to_str(), sorted(self.stops), self.bos, self._source(), self._text_of("eos_token")]
        return hashlib.blake2b(repr(parts).encode(), digest_size=16).hexdigest()

    def decode(self, ids: Sequence[int]) -> str:
        return str(self._core.decode(list(ids), skip_special_tokens=True))

    def stream(self, ids: Iterable[int], after: Sequence[int] = ()) -> Iterator[tuple[int, str]]:
        """(id, text that became certain with it): a character whose bytes are spread over tokens comes with the last
        of them. `after` are the ids before, whose text is not given again."""
        step = self.decoder(after)
        for token in ids:
            yield token, step(token)

    def decoder(self, after: Sequence[int] = ()) -> Callable[[int], str]:
        """`stream` for who has one id at a time: called with each, it gives the text that became certain."""
        from tokenizers.decoders import DecodeStream

        decoder = DecodeStream(skip_special_tokens=True)
        for token in after:
            decoder.step(self._core, token)
        return lambda token: decoder.step(self._core, token) or ""

    def vocabulary(self) -> dict[str, int]:
        """Every token and its id."""
        return dict(self._core.get_vocab(with_added_tokens=True))

    # chat

    def chat(self, messages: Sequence[Mapping[str, str]], *, answering: bool = True) -> list[int]:
        """Ids of a conversation, up to where the assistant answers. messages: {"role": ..., "content": ...}.
        answering=False: as it stands, with nobody about to answer.

        Raises WeightsError if the checkpoint has no chat template, or the template refuses the messages.
        """
        try:
            text = self._template().render(
                messages=list(messages), add_generation_prompt=answering,
                bos_token=self._text_of("bos_token"), eos_token=self._text_of("eos_token"),
            )  # fmt: skip
        except WeightsError:
            raise
        except Exception as error:  # a template is a program: it may fail in any way
            what = f"the chat template of {self._directory} refuses this conversation"
            why = f"{error}" if type(error).__module__.startswith("jinja2") else f"{type(error).__name__}: {error}"
            raise WeightsError(what, why, "Check the order of roles, or leave the system prompt out.") from error
        return list(self._core.encode(text, add_special_tokens=False).ids)

    def _source(self) -> str | None:
        beside = self._directory / "chat_template.jinja"
        if beside.is_file():
            return beside.read_text(encoding="utf-8")
        source = self._config.get("chat_template")
        if isinstance(source, list):  # several by name, as some publish
            source = next((t.get("template") for t in source if t.get("name") == "default"), None)
        return source if isinstance(source, str) else None

    def _template(self) -> Any:
        import jinja2
        import jinja2.sandbox

        source = self._source()
        if source is None:
            raise WeightsError(
                f"{self._directory} cannot chat",
                "it has no chat template: it was trained to continue text",
                "Give a prompt without --chat, or use a checkpoint that was tuned for chat.",
            )

        def refuse(message: str) -> None:
            raise jinja2.TemplateError(message)

        def now(form: str) -> str:
            from datetime import datetime

            return datetime.now().strftime(form)

        # trim_blocks and lstrip_blocks as in transformers, for which templates are written
        world = jinja2.sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        world.globals.update(raise_exception=refuse, strftime_now=now)
        world.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
        return world.from_string(source)

    def _text_of(self, name: str) -> str:
        value = self._config.get(name)
        if isinstance(value, dict):
            value = value.get("content")
        if value is None and name == "bos_token" and self.bos is not None:
            value = self._core.id_to_token(self.bos)
        return value or ""

    def _named_ids(self, name: str) -> list[int]:
        found = self._core.token_to_id(self._text_of(name)) if self._config.get(name) else None
        return [] if found is None else [found]


def of(model: Any) -> Tokenizer:
    """The tokenizer beside the weights that a model was loaded from. Raises WeightsError as `Tokenizer` does."""
    source: Checkpoint | None = model.source
    config = model.config
    directory = None if source is None else source.directory
    return Tokenizer(directory, config.vocab_size, (config.bos_token_id, config.eos_token_id))


def _read(directory: Path | None, vocab_size: int) -> Any:
    import tokenizers

    found = [
        directory / name for name in (FILE, vocabulary.FILE) if directory is not None and (directory / name).is_file()
    ]
    if not found:
        raise WeightsError(
            f"cannot read text for {directory or 'a single file of weights'}",
            f"there is no {FILE} beside the weights, and no {vocabulary.FILE}",
            "Use the checkpoint's whole directory; `zoo pull OWNER/NAME` fetches all of it.",
        )
    path = found[0]
    if path.stat().st_size > LIMIT:
        raise WeightsError(f"cannot read {path}", f"it has {path.stat().st_size:,} bytes: no tokenizer is that large")
    try:
        if path.name == FILE:
            return tokenizers.Tokenizer.from_file(str(path))
        return vocabulary.read(path, vocab_size)
    except Exception as error:  # the library raises Exception itself
        fix = "Fetch the file again." if path.name == FILE else f"Fetch it again, or put a {FILE} beside it."
        raise WeightsError(f"cannot read {path}", str(error)[:200], fix) from error


def _optional(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _ids(value: Any) -> list[int]:
    values = value if isinstance(value, (list, tuple)) else [value]
    return [v for v in values if isinstance(v, int)]
