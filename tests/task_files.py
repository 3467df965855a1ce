"""Tasks of lm-evaluation-harness, and a model folder whose tokenizer ends texts, made of words of no meaning: no network, no disk but
the test's own."""

import json
import random

import yaml

WORDS = [f"w{i}" for i in range(126)]
CHOICES = {
    "output_type": "multiple_choice",
    "doc_to_text": "{{text}}",
    "doc_to_choice": "choices",
    "doc_to_target": "label",
    "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
}
TASKS = {
    "endings": CHOICES,
    "letters": CHOICES | {"doc_to_choice": ["w1", "w2", "w3"], "metric_list": [{"metric": "acc"}]},
    "mixed": CHOICES | {"doc_to_choice": ["w1", "w2 w3", "w4 w5 w6"], "metric_list": [{"metric": "acc"}]},
    "rolling": {"output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{text}}"},
    "numbers": {
        "output_type": "generate_until",
        "doc_to_text": "{{text}}",
        "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": ["w3", "w4"], "do_sample": False, "max_gen_toks": 9},
        "filter_list": [
            {
                "name": "number",
                "filter": [{"function": "regex", "regex_pattern": "w([0-9]+)"}, {"function": "take_first"}],
            }
        ],
        "metric_list": [{"metric": "exact_match"}],
    },
    "sampled": {
        "output_type": "generate_until",
        "doc_to_text": "{{text}}",
        "doc_to_target": "{{answer}}",
        "repeats": 2,
        "generation_kwargs": {"until": ["w3"], "do_sample": True, "temperature": 1.0, "max_gen_toks": 12},
        "metric_list": [{"metric": "exact_match"}],
    },
}


def write_tasks(place, items=4, words=40):
    """YAML files and their data; contexts of so many words."""
    rng = random.Random(0)

    def some(count):
        return " ".join(rng.choices(WORDS, k=count))

    rows = [
        {
            "text": some(words + i),
            "choices": [some(3), some(5), some(2)],
            "label": rng.randrange(3),
            "answer": str(rng.randrange(126)),
        }
        for i in range(items)
    ]
    (place / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, own in TASKS.items():
        files = {"test": str(place / "data.jsonl")}
        said = {"task": name, "dataset_path": "json", "dataset_kwargs": {"data_files": files}, "test_split": "test"}
        (place / f"{name}.yaml").write_text(yaml.safe_dump(said | own | {"metadata": {"version": 1}}))
    return place


def write_model(place, model):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    model.save_pretrained(place)
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(["?", "end", *WORDS])}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="?", eos_token="end").save_pretrained(place)
    return place
