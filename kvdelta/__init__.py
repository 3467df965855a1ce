"""What does a KV-cache quantization scheme cost a model, in perplexity and in bytes, and why?

In the checkout this folder points at `schemes/`, `harness/` and `analysis/`, which stand at the top level; an installed kvdelta holds
them. Either way they are imported as `kvdelta.schemes`, `kvdelta.harness` and `kvdelta.analysis`, so that nothing collides with other
packages of such names."""
