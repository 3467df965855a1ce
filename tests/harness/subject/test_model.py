"""Loading models: what is named is loaded or refused, and nothing half-fetched is left behind."""

import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    BertLMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
)

from kvdelta.harness.subject import hub
from kvdelta.harness.subject.errors import ModelError
from kvdelta.harness.subject.model import load_model, pick_device, pick_dtype

from ...architectures import tiny

pytestmark = pytest.mark.usefixtures("cache")

ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
TINY = {"vocab_size": len(ALPHABET) + 1, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


def save_tokenizer(folder: Path) -> None:
    tokens = {token: index for index, token in enumerate([*ALPHABET, "<end>"])}
    tokenizer = Tokenizer(models.BPE(vocab=tokens, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>").save_pretrained(folder)


def tiny_llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**TINY, num_key_value_heads=1, intermediate_size=48))


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "tiny-llama"
    tiny_llama().save_pretrained(path)
    save_tokenizer(path)
    return path


class TestFolder:
    def test_loads_what_was_saved(self, folder):
        loaded = load_model(str(folder))
        assert loaded.name == "tiny-llama"
        assert {key: loaded.source[key] for key in ("kind", "id", "architecture")} == {
            "kind": "folder",
            "id": "tiny-llama",
            "architecture": "LlamaForCausalLM",
        }
        assert loaded.model.dtype == torch.float32
        assert not loaded.model.training
        assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
        expected = tiny_llama().state_dict()
        assert all(torch.equal(tensor, expected[name]) for name, tensor in loaded.model.state_dict().items())
        assert loaded.tokenizer("a b", add_special_tokens=False)["input_ids"]

    def test_hash_follows_weights(self, folder):
        before = load_model(str(folder)).source["sha256"]
        assert load_model(str(folder)).source["sha256"] == before
        changed = tiny_llama()
        with torch.no_grad():
            changed.lm_head.weight[0, 0] += 1
        changed.save_pretrained(folder)
        assert load_model(str(folder)).source["sha256"] != before

    def test_dtype(self, folder):
        assert load_model(str(folder), dtype=torch.bfloat16).model.dtype == torch.bfloat16

    def test_source_names_no_path_of_this_machine(self, folder, tmp_path):
        assert str(tmp_path) not in json.dumps([load_model(str(folder)).source, load_model(str(folder)).name])

    def test_revision_is_refused(self, folder, refused):
        with refused('revision "main" goes with a hub id only'):
            load_model(str(folder), revision="main")

    def test_without_config(self, tmp_path, refused):
        with refused(r"no config\.json"):
            load_model(str(tmp_path))

    def test_without_weights(self, folder, refused):
        (folder / "model.safetensors").unlink()
        with refused("cannot be loaded; tried the local files"):
            load_model(str(folder))

    def test_pickled_weights_are_not_read(self, folder, refused):
        (folder / "model.safetensors").unlink()
        torch.save({}, folder / "pytorch_model.bin")
        with refused("pickled weights .* alone, which can run code"):
            load_model(str(folder))

    def test_a_models_own_code_is_run_where_it_is_trusted_alone(self, folder, tmp_path, refused):
        ran = tmp_path / "ran"
        (folder / "own.py").write_text(
            "from transformers import LlamaConfig, LlamaForCausalLM\n"
            f"open({str(ran)!r}, 'w').close()\n"
            "class OwnConfig(LlamaConfig):\n    model_type = 'own'\n"
            "class Own(LlamaForCausalLM):\n    config_class = OwnConfig\n"
        )
        config = json.loads((folder / "config.json").read_text())
        own = {"model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.Own"}}
        (folder / "config.json").write_text(json.dumps(config | own))
        with refused("it brings Python code of its own: read that, and give --trust-remote-code"):
            load_model(str(folder))
        assert not ran.exists()
        loaded = load_model(str(folder), trust_remote_code=True)
        assert ran.exists()
        assert (loaded.source["architecture"], loaded.source["code"]) == ("Own", "its own")
        (folder / "own.py").write_text((folder / "own.py").read_text() + "# changed\n")
        assert load_model(str(folder), trust_remote_code=True).source["sha256"] != loaded.source["sha256"]

    def test_without_tokenizer(self, folder, refused):
        for path in folder.glob("tokenizer*"):
            path.unlink()
        with refused("cannot be loaded"):
            load_model(str(folder))

    def test_truncated_weights(self, folder, refused):
        weights = folder / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-100])
        with refused("cannot be loaded"):
            load_model(str(folder))

    def test_missing_weights_are_not_random(self, folder, refused):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
        with refused("lacks 9 weights of LlamaForCausalLM"):
            load_model(str(folder))


class TestUnsupported:
    def refused(self, tmp_path, model, match):
        model.save_pretrained(tmp_path / "model")
        save_tokenizer(tmp_path / "model")
        with pytest.raises(ModelError, match=match) as error:
            load_model(str(tmp_path / "model"))
        assert "\n" not in str(error.value)
        assert "--model" in str(error.value)

    def test_encoder_decoder(self, tmp_path):
        self.refused(tmp_path, T5Config(), "encoder-decoder")

    def test_encoder(self, tmp_path):
        config = BertConfig(**TINY, intermediate_size=32)
        self.refused(tmp_path, BertLMHeadModel(config), "is an encoder: its tokens see what follows")

    def test_recurrent_state(self, tmp_path):
        config = MambaConfig(vocab_size=TINY["vocab_size"], hidden_size=32, num_hidden_layers=1)
        self.refused(tmp_path, MambaForCausalLM(config), "keeps a recurrent state")

    def test_code_of_the_models_own_is_not_run(self, tmp_path, monkeypatch):
        """transformers would ask on the terminal, and a user in a hurry says yes."""
        folder, mark = tmp_path / "model", tmp_path / "it ran"
        folder.mkdir()
        names = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}
        (folder / "config.json").write_text(json.dumps({"model_type": "own", "auto_map": names}))
        (folder / "own.py").write_text(f"from pathlib import Path\nPath({str(mark)!r}).touch()\n")
        monkeypatch.setattr("builtins.input", lambda prompt: "y")
        with pytest.raises(ModelError, match="cannot be loaded; tried the local files"):
            load_model(str(folder))
        assert not mark.exists()


@pytest.mark.parametrize(
    "name",
    [
        "GPTNeoX",  # its config says is_decoder=False
        "GPT2",
        "Qwen3Next",  # stateful, but its full-attention layers keep keys and values
        "Jamba",
    ],
)
def test_decoders_and_hybrids_are_loaded(name, tmp_path):
    model = tiny(name)
    model.save_pretrained(tmp_path / name)
    save_tokenizer(tmp_path / name)
    assert load_model(str(tmp_path / name)).source["architecture"] == type(model).__name__


@pytest.mark.parametrize("name", ["./no", "/no/such", "~/no-such-folder", "no.gguf", "a/b/c", "..", "C:\\m"])
def test_missing_path(name, tmp_path, monkeypatch, refused):
    (tmp_path / "inner").mkdir()
    monkeypatch.chdir(tmp_path / "inner")
    with refused(r"does not exist|no config\.json"):
        load_model(name)


def test_file_that_is_no_model(tmp_path, refused):
    (tmp_path / "notes.txt").write_text("hello")
    with refused("neither a model folder nor a GGUF file"):
        load_model(str(tmp_path / "notes.txt"))


class TestHub:
    def test_unreachable(self, monkeypatch):
        def fail(where, **options):
            raise OSError("No connection.\nRead the manual.")

        monkeypatch.setattr(hub, "answers", lambda: True)
        monkeypatch.setattr(AutoConfig, "from_pretrained", fail)
        with pytest.raises(ModelError) as error:
            load_model("some/model", revision="abc")
        assert str(error.value) == (
            'model "some/model" cannot be loaded; tried the model hub (revision "abc"): No connection; '
            "check the id, the revision and the network, or leave --model out for the packaged default"
        )

    def test_revision_is_resolved(self, folder, monkeypatch):
        real, seen = AutoConfig.from_pretrained, []

        def config_of(where, **options):
            if where != "some/model":
                return real(where, **options)
            seen.append(options["revision"])
            config = real(folder)
            config._commit_hash = "0123abcd"
            return config

        def local(load):
            def load_locally(where, **options):
                seen.append(options["revision"])
                return load(folder, **options)

            return load_locally

        monkeypatch.setattr(AutoConfig, "from_pretrained", config_of)
        for cls in (AutoTokenizer, AutoModelForCausalLM):
            monkeypatch.setattr(cls, "from_pretrained", local(cls.from_pretrained))
        loaded = load_model("some/model", revision="v1")
        assert seen == ["v1", "0123abcd", "0123abcd"]  # what "v1" means cannot change between config and weights
        assert loaded.name == "some/model"
        assert (loaded.source["kind"], loaded.source["revision"]) == ("hub", "0123abcd")


def test_device():
    assert pick_device("cpu") == "cpu"
    assert pick_device() == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(ValueError, match='device "tpu" is not available here; choose one of: cpu'):
        pick_device("tpu")


def test_dtype():
    assert pick_dtype(None, "cpu") == torch.float32
    assert pick_dtype(None, "cuda:0") == torch.float16
    assert pick_dtype("bfloat16", "cuda") == torch.bfloat16
    with pytest.raises(ValueError, match='unknown dtype "int8"; choose one of: float32, float16, bfloat16'):
        pick_dtype("int8")
