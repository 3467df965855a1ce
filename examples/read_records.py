"""The rows of a record, without a model: which schemes nobody beats at their size?

python read_records.py results/demo
"""

import sys
from pathlib import Path

from kvdelta.analysis.reading.summary import summarize
from kvdelta.harness.records.run_folder import load_run

run = load_run(Path(sys.argv[1]))
rows = sorted(summarize(run), key=lambda row: row.bits)
print(run.model_name, run.text_name, run.settings.protocol, f"{len(run.windows)} windows", sep=", ")
for row in rows:
    beaten = [other.scheme for other in rows if other.bits <= row.bits and other.kl < row.kl]
    print(f"{row.scheme:8} {row.bits:6.2f} bits  KL {row.kl:.2g}", f"beaten by {', '.join(beaten)}" if beaten else "")
