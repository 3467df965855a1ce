"""A run record made by hand, with figures that can be checked on paper."""

import pytest

from kvdelta.analysis import plots
from kvdelta.analysis.plots import points, together
from kvdelta.harness.records.run import Audit, Bytes, ContenderRecord, NoiseFloor, Run, Settings, WindowRecord
from kvdelta.harness.records.writing import write_file

TOKENS = 10  # scored in a window


def contender(label, name, counted, elements=100, lossless=False):
    side = Bytes(held={"codes": int(counted)}, counted=counted, elements=elements)
    return ContenderRecord(
        label=label,
        name=name,
        lossless=lossless,
        quantized_sides=[] if lossless else ["key", "value"],
        spec={},
        quantized_layers=[0, 1],
        bytes={"key": side, "value": side},
    )


@pytest.fixture
def run():
    """exact loses 2 nats a token; int8 nothing more; int4 0.1, 0.2, 0.3 more in three windows, kivi2 1 more in each."""
    contenders = [
        contender("exact", "exact", 200.0, lossless=True),
        contender("int8", "symmetric:bits=8", 103.125),
        contender("int4", "symmetric:bits=4", 53.125),
        contender("kivi2", "kivi:bits=2", 50.0),
    ]
    windows = [
        WindowRecord(
            index=i,
            start=100 * i,
            count=TOKENS,
            nll=[20.0, 20.0, 20.0 + 1 + i, 30.0],
            kl=[0.0, 0.0, 0.5, 5.0],
            top1=[10, 10, 9, 5],
            probability=[5.0, 5.0, 4.0, 1.0],
            key_pairs=[60, 60, 60, 60],
            value_pairs=[60, 60, 60, 30],
            pairs=[100] * 4,
        )
        for i in range(3)
    ]
    settings = Settings(
        model={"kind": "test"},
        text_sha256="0",
        protocol="two-pass",
        step=None,
        window_length=40,
        score_length=11,
        stride=11,
        windows=[0, 1, 2],
        bos_token_id=None,
        device="cpu",
        dtype="float32",
        attention="sdpa",
        seed=0,
        contenders=[c.name for c in contenders],
        versions={},
    )
    return Run(
        kvdelta="0",
        status="complete",
        command="kvdelta compare",
        commit=None,
        model_name="a model",
        text_name="a text",
        text_source={},
        text_tokens=300,
        layers=2,
        threads=1,
        settings=settings,
        contenders=contenders,
        noise_floor=NoiseFloor(delta_nll=1e-3, kl=1e-4, routes={}),
        windows=windows,
        audit=Audit(identity_is_exact=True),
    )


@pytest.fixture
def unrendered(monkeypatch):
    """Figures are made as ever, but they are not laid out and their files hold nothing: that is most of a command's
    time, and other tests render each of them."""

    def save(figure, folder, name):
        paths = [folder / f"{name}.{kind}" for kind in ("svg", "png")]
        for path in paths:
            write_file(path, b"")
        return paths

    monkeypatch.setattr(together, "cores", lambda: 1)  # other processes would draw as ever
    monkeypatch.setattr(points, "settle", lambda figure: None)
    monkeypatch.setattr(plots, "save", save)
