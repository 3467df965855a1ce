"""Forwards of a stepwise suffix as CUDA graphs: recorded once, replayed for every scheme and batch of windows.

A forward of few tokens is a thousand small kernels, and launching them takes longer than they do. What a recorded one reads
and writes lies at fixed addresses (`harness.caches.stepping.Buffers`): the decoded tokens of every layer, with the new ones
behind them. Its kernels are those of the ordinary forward, and so are its numbers, which the identity control checks.
"""

import copy
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from kvdelta.harness.caches.scheme import SchemeCache
from kvdelta.harness.caches.stepping import Buffers, StepLayer
from kvdelta.harness.subject.forward import forward

WORTH = 4  # replays: recording one costs about three ordinary forwards


class Recorded:
    """The recorded forwards of one model for batches of one size. `works` is False once one could not be recorded."""

    def __init__(self, model: Any):
        self.model = model
        self.buffers = Buffers()
        self.works = True
        self._graphs: dict[tuple[int, int], tuple[torch.cuda.CUDAGraph, Tensor, Tensor]] = {}
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream(model.device)
        self._outputs: dict[int, tuple[Tensor, Tensor]] = {}

    def takes(self, cache: Any) -> bool:
        """A cache whose every layer is one of ours, on its steps."""
        return self.works and isinstance(cache, SchemeCache) and all(isinstance(one, StepLayer) for one in cache.layers)

    def forward(self, cache: SchemeCache, tokens: Int64[Tensor, "batch new"]) -> Float[Tensor, "batch new vocabulary"]:
        """The logits of the next tokens, valid until the next call."""
        with torch.cuda.device(self.model.device):
            return self._forward(cache, tokens)

    def _forward(self, cache: SchemeCache, tokens: Tensor) -> Tensor:
        key = (cache.get_seq_length(), tokens.shape[1])
        if key not in self._graphs:
            try:
                self._graphs[key] = self._record(cache, tokens.to(self.model.device))
            except RuntimeError:  # a model that waits for the device, or makes tensors on the host, on its way
                self.works = False
                torch.cuda.synchronize()
                return forward(self.model, tokens, cache).logits
        graph, given, logits = self._graphs[key]
        given.copy_(tokens, non_blocking=True)
        graph.replay()
        cache.replayed(tokens.shape[1])
        return logits

    def _record(self, cache: SchemeCache, tokens: Tensor) -> tuple[torch.cuda.CUDAGraph, Tensor, Tensor]:
        unwatched = copy.copy(cache)  # a graph's forwards are not seen one by one: `replayed` tells of them
        vars(unwatched).pop("update", None)
        stream, graph = self._stream, torch.cuda.CUDAGraph()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            given, logits = self._static(forward(self.model, tokens, unwatched).logits, tokens)
            given.copy_(tokens)
            stream.synchronize()
            graph.capture_begin(pool=self._pool)
            try:
                logits.copy_(forward(self.model, given, unwatched).logits)
            finally:
                graph.capture_end()
        torch.cuda.current_stream().wait_stream(stream)
        return graph, given, logits

    def _static(self, logits: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Where the tokens are given and the logits found, of so many tokens."""
        if tokens.shape[1] not in self._outputs:
            self._outputs[tokens.shape[1]] = (torch.empty_like(tokens), torch.empty_like(logits))
        return self._outputs[tokens.shape[1]]
