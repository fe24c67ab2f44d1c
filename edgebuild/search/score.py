"""Compares outputs: how well an artifact agrees with its network."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgebuild.vocabulary.trial import Parity

Arrays = Sequence[np.ndarray]


def agreement(outputs: Arrays, reference: Arrays) -> float:
    """From 0 to 1: the score where the user gave none.

    The share of equal top-1 classes for one (count, classes) output; otherwise one minus the
    relative error, in the root mean square over everything.
    """
    if len(reference) == 1 and _is_classes(reference[0]):
        return float(np.mean(outputs[0].argmax(1) == reference[0].argmax(1)))
    noise = sum(_energy(wanted - got) for wanted, got in _pairs(reference, outputs))
    signal = sum(_energy(wanted) for wanted, _ in _pairs(reference, outputs))
    return max(0.0, 1.0 - float(np.sqrt(noise / max(signal, 1e-30))))


def parity(outputs: Arrays, reference: Arrays) -> Parity:
    """How far an artifact's outputs are from its network's."""
    pairs = _pairs(reference, outputs)
    errors = [np.abs(wanted - got).max() for wanted, got in pairs]
    scales = [max(np.abs(wanted).max(), 1e-12) for wanted, _ in pairs]
    noise = sum(_energy(wanted - got) for wanted, got in pairs)
    signal = sum(_energy(wanted) for wanted, _ in pairs)
    return Parity(
        samples=len(reference[0]),
        max_error=float(max(errors)),
        relative_error=float(max(e / s for e, s in zip(errors, scales, strict=True))),
        signal_to_noise=float(10 * np.log10(max(signal, 1e-30) / max(noise, 1e-30))),
    )


def divergence(outputs: Arrays, reference: Arrays, spread: Sequence[float] | None = None) -> float:
    """KL divergence of the outputs from the reference, in nats, mean over samples.

    A (count, classes) output is taken for logits. Any other is taken for the mean of a Gaussian
    whose variance is the reference's own, where KL is the squared error over twice the variance.
    `spread` gives each output's variance where the samples at hand are too few to tell.
    """
    pairs = _pairs(reference, outputs)
    known = [float(wanted.var()) for wanted, _ in pairs] if spread is None else spread
    losses = (_divergence(got, wanted, s) for (wanted, got), s in zip(pairs, known, strict=True))
    return float(sum(losses))


def loss_name(reference: Arrays) -> str:
    """What `divergence` is where it is not the KL of classes alone; else nothing."""
    kinds = {_is_classes(wanted) for wanted in reference}
    squared = "squared error over twice the outputs' variance"
    if False not in kinds:
        return ""
    return f"KL of the classes, and {squared} of the rest" if True in kinds else squared


def _is_classes(output: np.ndarray) -> bool:
    return output.ndim == 2 and output.shape[1] > 1


def _divergence(got: np.ndarray, wanted: np.ndarray, spread: float) -> float:
    if _is_classes(wanted):
        log_p, log_q = _log_softmax(wanted), _log_softmax(got)
        return float(np.mean(np.sum(np.exp(log_p) * (log_p - log_q), axis=1)))
    return float(np.mean((wanted - got) ** 2) / (2 * max(spread, 1e-12)))


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=1, keepdims=True)
    result: np.ndarray = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result


def _energy(values: np.ndarray) -> float:
    return float(np.square(values).sum())


def _pairs(reference: Arrays, outputs: Arrays) -> list[tuple[np.ndarray, np.ndarray]]:
    return [
        (np.asarray(wanted, np.float64), np.asarray(got, np.float64))
        for wanted, got in zip(reference, outputs, strict=True)
    ]
