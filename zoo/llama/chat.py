"""A conversation at the terminal. Ctrl-C ends an answer, Ctrl-D the conversation."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zoo.llama.writer import Writer

HELP = "/reset begins anew, /exit or Ctrl-D ends; Ctrl-C stops an answer"


def converse(writer: Writer, system: str) -> Iterator[Any]:
    """Reads turns from the terminal and answers them, until it ends."""
    print(HELP, file=sys.stderr)
    first = [{"role": "system", "content": system}] * bool(system)
    messages = list(first)
    while True:
        try:
            print("> ", end="", file=sys.stderr, flush=True)
            text = input()
        except EOFError:
            return
        except KeyboardInterrupt:
            print(f"\n{HELP}", file=sys.stderr)
            continue
        if text.strip() in ("/exit", "/quit"):
            return
        if text.strip() == "/reset":
            messages = list(first)
            continue
        if not text.strip():
            continue
        messages.append({"role": "user", "content": text})
        answer = ""
        try:
            for piece in writer.write(writer.tokenizer.chat(messages)):
                if isinstance(piece, str):
                    answer += piece
                    yield piece
        except KeyboardInterrupt:
            pass
        yield "\n"
        messages.append({"role": "assistant", "content": answer})
