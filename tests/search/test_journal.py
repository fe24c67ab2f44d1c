"""The journal gives back what was decided, and nothing where it was cut off."""

from __future__ import annotations

from pathlib import Path

from edgebuild.search.journal import Journal, Round
from edgebuild.search.proposal import Proposal
from edgebuild.vocabulary.offer import NETWORK, Choice, Part, PartKind
from edgebuild.vocabulary.precision import Precision

PROPOSAL = Proposal(
    name="prune x 1, distill 100 steps, int8-static",
    format="onnx",
    reshaped=(
        (Part("features.0", PartKind.CHANNELS), Choice("prune", "keep 16 of 32")),
        (NETWORK, Choice("distill", "100 steps, seed 0")),
    ),
    precisions={"features.0": Precision.INT8_STATIC},
    latency=1e-3,
)


def test_rounds_are_read_as_they_were_written(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "rounds.json")
    rounds = (Round((PROPOSAL,), 2.5), Round((PROPOSAL, PROPOSAL)))
    journal.write(rounds)
    assert journal.read() == rounds


def test_a_new_journal_is_empty(tmp_path: Path) -> None:
    assert Journal(tmp_path / "rounds.json").read() == ()


def test_a_file_that_was_cut_off_is_no_journal(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "rounds.json")
    journal.write([Round((PROPOSAL,), 2.5)])
    journal.path.write_bytes(journal.path.read_bytes()[:-10])
    assert journal.read() == ()


def test_writing_leaves_nothing_else(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "rounds.json")
    journal.write([Round((PROPOSAL,), 2.5)])
    assert [file.name for file in tmp_path.iterdir()] == ["rounds.json"]
