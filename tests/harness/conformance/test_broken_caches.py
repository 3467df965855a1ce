"""Caches that each break one promise, and are DynamicCache or SchemeCache otherwise: exactly that check fails."""

import copy

import pytest
import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from kvdelta.harness.caches.scheme import SchemeCache
from kvdelta.harness.conformance import checks
from kvdelta.schemes import parse_scheme


class Exact(DynamicCache):
    def __init__(self, config):
        super().__init__(config=config)

    def reset(self):
        super().reset()
        for layer in self.layers:
            if type(layer) is DynamicLayer:  # transformers 5.17 leaves zeros where tokens were
                layer.keys = layer.values = None
                layer.is_initialized = False


class Lossy(SchemeCache):
    def __init__(self, config):
        super().__init__(parse_scheme("kivi2"), config)


class LengthOfOneLayer(Exact):
    """Of long texts."""

    def get_seq_length(self, layer_idx=0):
        return super().get_seq_length(layer_idx) + (layer_idx == 1 and super().get_seq_length(1) > 320)


class LengthOfAll(Exact):
    def get_seq_length(self, layer_idx=0):
        seen = super().get_seq_length(layer_idx)
        return seen + 1 if seen else 0


class MaskOfOneLayer(Exact):
    """Of long texts."""

    def get_mask_sizes(self, query_length, layer_idx):
        length, offset = super().get_mask_sizes(query_length, layer_idx)
        return length + (layer_idx == 1 and length > 300), offset


def crops_nothing(base):
    class Cropped(base):
        def crop(self, tokens_to_remove):
            pass

    return Cropped


class CropsTheOldest(Exact):
    def crop(self, tokens_to_remove):
        for layer in self.layers:
            layer.keys, layer.values = (x[:, :, -int(tokens_to_remove) :] for x in (layer.keys, layer.values))


def reorders_nothing(base):
    class Reordered(base):
        def reorder_cache(self, beam_idx):
            pass

    return Reordered


class ReordersKeysAlone(Exact):
    def reorder_cache(self, beam_idx):
        for layer in self.layers:
            layer.keys = layer.keys[beam_idx]


class SelectsNothing(Exact):
    def batch_select_indices(self, indices):
        pass


class Tiles(Exact):
    """Rows 0, 1, 0, 1 where 0, 0, 1, 1 are asked for."""

    def batch_repeat_interleave(self, repeats):
        for layer in self.layers:
            layer.keys, layer.values = (x.repeat(repeats, 1, 1, 1) for x in (layer.keys, layer.values))


class SharesItsCopy(Exact):
    def __deepcopy__(self, memo):
        return copy.copy(self)


class ResetsNothing(Exact):
    def reset(self):
        pass


class ResetsToOther(Exact):
    worn = False

    def reset(self):
        super().reset()
        self.worn = True

    def update(self, key_states, value_states, layer_idx, *args, **kwargs):
        return super().update(key_states, value_states * (1.01 if self.worn else 1), layer_idx)


class KeepsAfterReset(Exact):
    def reset(self):
        self.old = [*getattr(self, "old", []), self.layers[0].keys]
        super().reset()


class Widens(Exact):
    """Of halves, at most: float32 is what it is."""

    def update(self, *args, **kwargs):
        return tuple(x.float() for x in super().update(*args, **kwargs))


class LosesAToken(Exact):
    def update(self, *args, **kwargs):
        keys, values = super().update(*args, **kwargs)
        if keys.shape[2] - args[0].shape[2] > 20:
            keys = torch.cat([keys[:, :, :10], keys[:, :, 11:12], keys[:, :, 11:]], dim=2)
        return keys, values


class WantsWholeBlocks(Exact):
    """What is over of a first forward is stored as zeros."""

    def update(self, key_states, value_states, layer_idx, *args, **kwargs):
        over = key_states.shape[2] % 8
        if over and key_states.shape[2] > 8 and not self.get_seq_length(layer_idx):
            super().update(key_states[:, :, :-over], value_states[:, :, :-over], layer_idx)
            key_states, value_states = (torch.zeros_like(x[:, :, -over:]) for x in (key_states, value_states))
        return super().update(key_states, value_states, layer_idx)


class Draws(Exact):
    """A number of the generator that sampling draws from."""

    def update(self, *args, **kwargs):
        torch.rand(1)
        return super().update(*args, **kwargs)


class TakesPadsForAnother(Exact):
    """A row that begins with the same token twice gets the first row's."""

    def update(self, key_states, value_states, layer_idx, *args, **kwargs):
        if (
            len(value_states) > 1
            and key_states.shape[2] > 1
            and torch.equal(value_states[1, :, 0], value_states[1, :, 1])
        ):
            key_states, value_states = (x[[0, 0]] for x in (key_states, value_states))
        return super().update(key_states, value_states, layer_idx)


class InPlace(Exact):
    """Multiplied by 1, where it lies."""

    def update(self, *args, **kwargs):
        for layer in self.layers:
            if getattr(layer, "keys", None) is not None:
                layer.keys.mul_(1)
        return super().update(*args, **kwargs)


class LeavesAPart(Exact):
    def __init__(self, config):
        super().__init__(config)
        for layer in self.layers:
            layer.codes = torch.zeros(100, dtype=torch.uint8)


class FullLayersAlone(Exact):
    """Layers that are made when asked for, without a look at the config."""

    def __init__(self, config):
        DynamicCache.__init__(self)


class Hides(Exact):
    """Tokens lie in a closure."""

    def __init__(self, config):
        super().__init__(config)
        inner = Exact(config)
        self.layers = []
        for name in ("update", "get_seq_length", "get_mask_sizes", "crop", "reset", "reorder_cache"):
            setattr(self, name, lambda *args, name=name, **kwargs: getattr(inner, name)(*args, **kwargs))


DRAFTS = {"prompt lookup", "assisted decoding"}
BROKEN = {  # the checks that fail, and no others do
    "length of one layer": (LengthOfOneLayer, {"length"}),
    "mask of one layer": (MaskOfOneLayer, {"mask sizes"}),
    "crops nothing": (crops_nothing(Exact), {"crop", *DRAFTS}),
    "crops nothing, lossy": (crops_nothing(Lossy), {"crop", *DRAFTS}),
    "crops the oldest": (CropsTheOldest, {"crop", *DRAFTS}),
    "reorders nothing": (reorders_nothing(Exact), {"reorder", "beam"}),
    "reorders nothing, lossy": (reorders_nothing(Lossy), {"reorder", "beam"}),
    "reorders keys alone": (ReordersKeysAlone, {"reorder", "beam"}),
    "selects nothing": (SelectsNothing, {"batch operations"}),
    "tiles": (Tiles, {"batch operations"}),
    "shares its copy": (SharesItsCopy, {"deepcopy"}),
    "resets nothing": (ResetsNothing, {"reset", "memory held"}),
    "resets to other": (ResetsToOther, {"reset"}),
    "keeps after reset": (KeepsAfterReset, {"memory held"}),
    "widens": (Widens, {"dtype"}),
    "loses a token": (LosesAToken, {"contents", "lengths that do not divide"}),
    "wants whole blocks": (WantsWholeBlocks, {"lengths that do not divide"}),
    "draws": (Draws, {"sampling"}),
    "takes pads for another": (TakesPadsForAnother, {"left padding"}),
    "in place": (InPlace, {"inference_mode before generate"}),
    "leaves a part": (LeavesAPart, {"offload"}),
    "full layers alone": (FullLayersAlone, {"hybrid, convolution"}),
    "hides": (Hides, {"batch operations", "deepcopy", "hybrid, convolution", "memory held"}),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_broken_fails_and_nothing_else(name):
    factory, broken = BROKEN[name]
    ended = {str(check): check(factory) for check in checks}
    assert {
        check: outcome.why for check, outcome in ended.items() if (outcome.ending == "fail") != (check in broken)
    } == {}
    assert all(ended[check].why for check in broken)


def test_a_length_that_is_wrong_throughout_puts_tokens_in_other_positions():
    ended = {str(check): check(LengthOfAll) for check in checks}
    assert {ended[name].ending for name in ("length", "positions", "greedy")} == {"fail"}
    assert ended["length"].why == "length after 192 tokens: expected 192, got 193 (layer 0)"
    assert {ended[name].ending for name in ("mask sizes", "contents", "reorder", "deepcopy", "memory held")} == {"pass"}


def test_the_newest_token_that_a_cache_keeps_is_the_last():
    from kvdelta.harness.conformance.comparing import has_past
    from kvdelta.harness.conformance.feeding import Returned, stream
    from kvdelta.harness.conformance.outcome import Wrong

    def kept(places):
        held = [tuple(x[:, :, places] for x in sides) for sides in stream(0, 60)]
        return Returned(held, [(len(places), 60 - len(places))] * len(held))

    assert has_past(kept([0, 1, 2, 3, 59]), 60, (0, 1), True, "past") == pytest.approx(1)
    for places in ([0, 1, 2, 3, 58], [0, 1, 59, 2, 3], [0, 1, 2, 59, 59]):
        with pytest.raises(Wrong, match="expected tokens in their order, the newest last"):
            has_past(kept(places), 60, (0, 1), True, "past")
    spoiled = kept([0, 1, 2, 3, 59])
    spoiled.held[1][1][:, :, 3] = 0
    with pytest.raises(Wrong, match=r"layer 1, values"):
        has_past(spoiled, 60, (0, 1), False, "past")
