"""Two schemes in one sentence."""

from kvdelta.analysis.reading.headline import equal_bits_headline


def test_headline(run):
    said = equal_bits_headline(run, "kivi2", "int4")
    assert said.startswith("At 4.00 against 4.25 measured bits, kivi2 loses 0.8000 nats a token more than int4")
    assert "do not tell them apart" not in said
    for window, loss in zip(run.windows, (20.0, 30.0, 20.0), strict=True):
        window.nll[3] = loss
    assert "so these windows do not tell them apart" in equal_bits_headline(run, "kivi2", "int4")


def test_windows_without_an_interval_say_why(run):
    run.settings.stride = 5  # of 11 scored tokens
    assert equal_bits_headline(run, "int4", "kivi2").endswith("; windows that score tokens twice have no interval.")
    run.windows = run.windows[:1]
    assert equal_bits_headline(run, "int4", "kivi2").endswith("; one window has no interval.")
