"""The genai_config.json with which onnxruntime-genai runs a bundle as it is."""

from __future__ import annotations

import json
from collections.abc import Iterable

from edgebuild.generate import GRAPH
from edgebuild.llm.network import Network

FILE = "genai_config.json"


def genai_config(network: Network, context: int, first: int | None, stops: Iterable[int]) -> bytes:
    """The names of inputs and outputs, sizes, and the tokens that begin and end texts."""
    ends = sorted(stops) or [0]
    model = {
        "type": network.decoder.family,
        "bos_token_id": ends[0] if first is None else first,
        "eos_token_id": ends if len(ends) > 1 else ends[0],
        "pad_token_id": ends[0],
        "context_length": context,
        "vocab_size": network.decoder.vocabulary,
        "decoder": {
            "filename": GRAPH,
            "session_options": {"provider_options": []},
            "hidden_size": network.decoder.hidden,
            "head_size": network.head,
            "num_attention_heads": network.heads,
            "num_key_value_heads": network.cached_heads,
            "num_hidden_layers": network.decoder.layers,
            "inputs": {
                "input_ids": "input_ids",
                "attention_mask": "attention_mask",
                "past_key_names": "past_key_values.%d.key",
                "past_value_names": "past_key_values.%d.value",
            },
            "outputs": {
                "logits": "logits",
                "present_key_names": "present.%d.key",
                "present_value_names": "present.%d.value",
            },
        },
    }
    search = {"max_length": context, "past_present_share_buffer": True, "do_sample": False}
    return json.dumps({"model": model, "search": search}, indent=1).encode()
