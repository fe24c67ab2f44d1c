"""Talks: a conversation as text, answered by a bundle token by token."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from edgebuild.generate import Decoder, LiteDecoder, open_decoder
from edgebuild.llm.bundle import load_model
from edgebuild.llm.text import TOKENIZER, Tokenizer, open_tokenizer
from edgebuild.vocabulary.errors import InvalidBundle, InvalidQuantity

# What a text ends with while the bytes of a character are still to come.
UNFINISHED = "\N{REPLACEMENT CHARACTER}"


@dataclass
class Conversation:
    """What was said, and the decoder that has read it; an answer has `most` tokens."""

    tokenizer: Tokenizer
    decoder: Decoder | LiteDecoder
    most: int
    messages: list[dict[str, str]] = field(default_factory=list)
    read: list[int] = field(default_factory=list)

    @classmethod
    def open(cls, folder: Path, most: int) -> Conversation:
        """A new conversation with a bundle.

        Raises:
            InvalidBundle: no bundle, or one without a tokenizer.
        """
        load_model(folder)
        tokenizer = open_tokenizer(folder)
        if tokenizer is None:
            raise InvalidBundle(
                f"{folder} has no {TOKENIZER}: the checkpoint came without one, so nobody can talk "
                "to it; run.py generate takes tokens by number"
            )
        return cls(tokenizer, open_decoder(str(folder)), most)

    def answer(self, asked: str) -> Iterator[str]:
        """Pieces of text, each token the likeliest, until the model ends its answer.

        Raises:
            InvalidQuantity: the conversation is longer than the bundle's context.
        """
        self.messages.append({"role": "user", "content": asked})
        prompt = self.tokenizer.prompt(self.messages)
        if len(prompt) >= self.decoder.context:
            raise InvalidQuantity(
                f"the conversation has {len(prompt)} tokens, and the bundle remembers "
                f"{self.decoder.context}: begin a new one"
            )
        found: list[int] = []
        shown = ""
        logits = self.decoder.read(self._new(prompt))
        room = self.decoder.context - len(prompt)
        while len(found) < min(self.most, room):
            token = int(logits[-1].argmax())
            if token in self.tokenizer.stops:
                break
            found.append(token)
            text = self.tokenizer.text(found)
            if not text.endswith(UNFINISHED):
                yield text[len(shown) :]
                shown = text
            logits = self.decoder.read([token])
            self.read.append(token)
        self.messages.append({"role": "assistant", "content": shown})

    def _new(self, prompt: list[int]) -> list[int]:
        """What the decoder has not read yet; it begins anew where the prompt is another one."""
        known = len(self.read)
        if self.read and prompt[:known] == self.read and len(prompt) > known:
            self.read = list(prompt)
            return prompt[known:]
        self.decoder.forget()
        self.read = list(prompt)
        return prompt
