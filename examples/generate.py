"""A quantized cache in `generate` and in a pipeline; its bytes as it holds them.

pip install kvdelta && python generate.py
"""

from transformers import pipeline

from kvdelta.harness import SchemeCache, load_model
from kvdelta.schemes import parse_scheme

loaded = load_model()  # the packaged model; or load_model("Qwen/Qwen2.5-0.5B")
prompt = loaded.tokenizer("The key-value cache of a language model " * 8, return_tensors="pt")

for spec in ("exact", "int8", "kivi2:residual_length=32"):
    cache = SchemeCache.for_model(parse_scheme(spec), loaded.model)
    written = loaded.model.generate(**prompt, cache=cache, max_new_tokens=24, do_sample=False)
    said = loaded.tokenizer.decode(written[0, prompt["input_ids"].shape[1] :])
    held = sum(sum(store.nbytes().values()) for _, _, store in cache.stores())
    print(f"{spec}: {cache.get_seq_length()} tokens in {held:,} bytes: {said!r}")

writer = pipeline("text-generation", model=loaded.model, tokenizer=loaded.tokenizer)
cache = SchemeCache.for_model(parse_scheme("int8"), loaded.model)
print(writer("Once upon a time", cache=cache, max_new_tokens=16)[0]["generated_text"])
