"""llama.cpp's work, in processes of its own that may end as they like: files, rates, logits."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import llama
import numpy as np
from peers import PeerFailed, Row, last_words, limit_memory, llama_libraries, run

from edgebuild.generate import Decoder


def rounded(gguf: Path, folder: Path, ftype: str) -> Path:
    """A file as llama.cpp rounds it; tensors that have the wanted type stay as they are."""
    file = folder / f"{ftype}.gguf"
    run(_command("quantize", gguf, file, ftype))
    return file


def rates(model: Path) -> Row:
    """As our own loader prints them, with the bytes of all tensors."""
    found: Row = json.loads(run(_command("bench", model)).printed)
    return found


@contextmanager
def serving(model: Path) -> Iterator[Served]:
    """Starts the process, and ends it."""
    words = _command("serve", model)
    with tempfile.TemporaryFile() as complaints:
        process = subprocess.Popen(
            words,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=complaints,
            preexec_fn=limit_memory,
        )
        try:
            yield Served(process, complaints)
        finally:
            process.kill()
            process.communicate()


def _command(*words: object) -> list[str]:
    return [sys.executable, llama.__file__, str(llama_libraries()), *map(str, words)]


class Served(Decoder):
    """Reads as our own loader does; `size` is bytes of all tensors.

    Raises:
        PeerFailed: the process has ended, with its last words.
    """

    def __init__(self, process: subprocess.Popen[bytes], complaints: IO[bytes]) -> None:
        self.context, self.length = llama.CONTEXT, 0
        self._process, self._complaints = process, complaints
        self._vocabulary, self.size = map(int, np.frombuffer(self._answer(16), np.int64))

    def forget(self) -> None:
        self._ask([])
        self.length = 0

    def read(self, tokens: Sequence[int]) -> np.ndarray:
        """Logits [tokens, vocabulary]."""
        found = []
        for at in range(0, len(tokens), llama.BATCH):
            some = tokens[at : at + llama.BATCH]
            self._ask(some)
            answer = self._answer(4 * len(some) * self._vocabulary)
            found.append(np.frombuffer(answer, np.float32).reshape(len(some), -1))
        self.length += len(tokens)
        return np.concatenate(found)

    def _ask(self, tokens: Sequence[int]) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(np.array([len(tokens), *tokens], np.int32).tobytes())
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._failure() from None

    def _answer(self, size: int) -> bytes:
        assert self._process.stdout is not None
        found = self._process.stdout.read(size)
        if len(found) < size:
            raise self._failure()
        return found

    def _failure(self) -> PeerFailed:
        code = self._process.wait()
        self._complaints.seek(0)
        return PeerFailed(last_words(code, self._complaints.read().decode(errors="replace")))
