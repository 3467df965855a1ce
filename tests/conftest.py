"""The annotations of `schemes`, shapes included, are checked in every test; everything is seeded. And a tiny random
model, with windows for it: the real path in miniature."""

import random
import sys
from contextlib import contextmanager
from types import SimpleNamespace

import beartype.typing
import jaxtyping
import numpy as np
import pytest
import torch
from hypothesis import settings
from jaxtyping import install_import_hook

# The hook decorates methods one by one, where beartype cannot know what `Self` is: that one hint is not checked.
# The numeric tower: where a float is asked for, a whole number is welcome.
CHECKER = """beartype.beartype(conf=beartype.BeartypeConf(
    is_pep484_tower=True, hint_overrides=beartype.FrozenDict({beartype.typing.Self: object})
))"""
assert beartype.typing
install_import_hook(["kvdelta"], CHECKER)  # before anything imports them

settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.load_profile("repeatable")


@contextmanager
def one_thread():
    """Where tensors are small: a second would mostly wait, and very long where another process has its core."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def threads(request):
    if request.node.get_closest_marker("real_model"):
        yield
        return
    with one_thread():
        yield


@pytest.fixture(autouse=True)
def seed():
    random.seed(0)
    np.random.seed(0)
    torch.default_generator.manual_seed(0)
    if torch.cuda.is_available():  # without a device torch.manual_seed keeps a traceback of each call for later
        torch.cuda.manual_seed_all(0)


@pytest.fixture
def unchecked_annotations():
    """They are checked in the other tests, and would be most of the time here."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


VOCABULARY = 128


TINY = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
}
SHARP = {"initializer_range": 0.2}  # large, so that attention looks at the cache and quantization shows


def tiny_config(**changes):
    from transformers import LlamaConfig

    return LlamaConfig(**{**TINY, **SHARP, **changes})


def tiny_model():
    from transformers import LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(tiny_config()).eval().requires_grad_(False)


@pytest.fixture(scope="session")
def model():
    return tiny_model()


def tiny_tokens():
    return torch.randint(1, VOCABULARY, (900,), generator=torch.Generator().manual_seed(1))


def tiny_subject(model, tokens):
    """What `prepare` would load, around the tiny model: windows of 96 + 32 tokens."""
    from kvdelta.harness.subject.model import LoadedModel
    from kvdelta.harness.subject.prepared import Subject
    from kvdelta.harness.subject.text import Text
    from kvdelta.harness.subject.windows import cut_windows

    tokenizer = SimpleNamespace(bos_token_id=None)
    loaded = LoadedModel(model, tokenizer, "tiny", {"kind": "test"})
    windows = cut_windows(tokens, window_length=128, score_length=32, windows=3)
    return Subject(loaded, Text("random", "", {"kind": "test"}), tokens, windows, None)


def tiny_options(out):
    from kvdelta.harness.options import Options

    return Options(window_length=128, score_length=32, windows=3, device="cpu", out=str(out))


@pytest.fixture
def tokens():
    return tiny_tokens()


@pytest.fixture
def subject(model, tokens):
    return tiny_subject(model, tokens)


@pytest.fixture
def options(tmp_path):
    return tiny_options(tmp_path / "run")


@pytest.fixture
def refused():
    """Bad input: a ValueError of one line that matches."""

    @contextmanager
    def refused(message):
        with pytest.raises(ValueError, match=message) as error:
            yield
        assert "\n" not in str(error.value)

    return refused


WORDS = [f"w{i}" for i in range(127)]
BENCHES = (("schemes",), ("decode",))
SCORING = ("compare", "audit", "outliers", "errors", "sensitivity", "allocate", "recommend")


@pytest.fixture(scope="session")
def files(tmp_path_factory, model):
    """A model folder and a text file."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    place = tmp_path_factory.mktemp("files")
    model.save_pretrained(place / "model")
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(["?", *WORDS])}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="?").save_pretrained(place / "model")
    (place / "text.txt").write_text(" ".join(random.Random(0).choices(WORDS, k=900)))
    return place


@pytest.fixture
def kvdelta(files, tmp_path, monkeypatch, capsys):
    """Runs a command in a folder of its own: (exit code, stdout, stderr)."""
    from kvdelta.analysis.cli.main import main

    monkeypatch.chdir(tmp_path)
    subject = ["--model", str(files / "model"), "--text", str(files / "text.txt"), "--device", "cpu"]
    sizes = ["--window-length", "128", "--score-length", "32"]

    def run(*words):
        named = 2 if words[0] == "bench" else 1
        defaults = [*subject, *sizes] if words[named - 1] in SCORING else subject if words[1:2] in BENCHES else []
        if "--shape" in words or "--config" in words:
            defaults = []
        monkeypatch.setattr(sys, "argv", ["kvdelta", *words[:named], *defaults, *words[named:]])  # a later flag wins
        with pytest.raises(SystemExit) as stop:
            main()
        out, err = capsys.readouterr()
        return stop.value.code, out, err

    yield run
    for name, module in [*sys.modules.items()]:  # a command is a process of its own: the next finds other factories
        if str(tmp_path) in str(getattr(module, "__file__", "")):
            del sys.modules[name]
