"""Remembers what a teacher has said: a search shows all its students the same images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

from torch import Tensor, nn

# Answers are kept up to this size: those to all rows, and as much again of those to batches. What
# another teacher has said is forgotten when that is as much already.
BYTES_OF_ANSWERS = 1e9

# What tells one batch from another: seed, step, sizes.
Question = tuple[int, ...]


@dataclass
class Memory:
    """What one teacher has said.

    Attributes:
        rows: its answers to all rows; empty where it was not asked.
        batches: its answers to batches.
        size: the bytes of the latter.
    """

    rows: Sequence[Tensor] = ()
    batches: dict[Question, Sequence[Tensor]] = field(default_factory=dict)
    size: int = 0

    @property
    def nbytes(self) -> int:
        """The bytes of all of them."""
        return self.size + sum(answers.nbytes for answers in self.rows)

    def answers(self, question: Question, ask: Callable[[], Sequence[Tensor]]) -> Sequence[Tensor]:
        """What was said before; else what is said now, kept while there is room for it."""
        if question in self.batches:
            return self.batches[question]
        answers = ask()
        if self.size <= BYTES_OF_ANSWERS:
            self.batches[question] = answers
            self.size += sum(answer.nbytes for answer in answers)
        return answers


_MEMORIES: WeakKeyDictionary[nn.Module, dict[str, Memory]] = WeakKeyDictionary()


def memory_of(owner: nn.Module, shown: str) -> Memory:
    """What the teacher that is a copy of a network has said of what it was shown.

    `shown` names the data, and the teacher's weights. It is remembered for as long as the network
    lives, until it is forgotten or others take its room.
    """
    memories = _MEMORIES.setdefault(owner, {})
    others = sum(memory.nbytes for memory in memories.values())
    if shown not in memories and others > BYTES_OF_ANSWERS:
        memories.clear()
    return memories.setdefault(shown, Memory())


def forget(owner: nn.Module) -> None:
    """Forgets what its copies have said."""
    _MEMORIES.pop(owner, None)
