"""Of docs/engines.md: llama.cpp beside rows of ours."""

from tests.docs.claiming import Claim
from tests.docs.records import llama_cpp


def against(way, *models):
    """By row, llama.cpp's against ours."""
    return [
        row[way]
        for model in models
        for one in llama_cpp(model)["engines"]
        for row in one["against"].values()
        if way in row
    ]


def larger():
    two_pass, step = ([row["kl_ratio"] for row in against(way, "smollm2")] for way in ("two-pass", "step 1"))
    return min(two_pass), max(two_pass), min(step), max(step)


def agreement():
    found = against("matched", "smollm2", "qwen")
    apart = [row for row in found if not row["low"] <= 0 <= row["high"]]
    return [len(apart), all(5 / 6 <= row["kl_ratio"] <= 7 / 6 for row in found)]


def windows(model):
    rows = llama_cpp(model)["ours"]["rows"]
    return max(row["windows"] for row in rows.values())


CLAIMS = (
    Claim("on SmolLM2 {} to {} times by two passes and {} to {} times token by token", larger),
    Claim("KL agrees within a sixth everywhere, ΔNLL within its interval but for {} cells", agreement),
    Claim("{} windows of SmolLM2, {} short ones of Qwen2.5", lambda: [windows("smollm2"), windows("qwen")]),
)

UNCHECKED = ()
