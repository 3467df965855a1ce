"""Two schemes on two windows of the packaged text, by two passes and by decoding; the figures as pandas frames.

pip install 'kvdelta[demo,parquet]' && python compare.py
"""

from kvdelta.harness import Options, compare, frames

short = Options(windows=2, window_length=512, score_length=64)  # the defaults, 2048 and 512, take minutes on a CPU
for options in short.by(["two-pass", "stepwise"], [16]):
    run, folder = compare(["int4", "kivi4"], options)
    windows = frames(run).windows
    means = windows.groupby("scheme", sort=False)[["nll", "kl"]].mean()
    means["delta_nll"] = means["nll"] - means["nll"]["exact"]
    print(f"{options.protocol}, record in {folder}", means[["delta_nll", "kl"]].round(4), sep="\n")
