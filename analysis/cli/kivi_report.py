"""One page that leads from outliers to perplexity: KIVI against naive INT4."""

from dataclasses import replace

from kvdelta.analysis.cli import terminal
from kvdelta.analysis.cli.report import write_page
from kvdelta.analysis.cli.runs import make_run, report_failures
from kvdelta.analysis.cli.starting import note, say, typed
from kvdelta.analysis.measuring.channel_statistics import measure_outliers
from kvdelta.analysis.measuring.errors import measure_errors
from kvdelta.analysis.pages.page import check_libraries
from kvdelta.analysis.reading import run_tables
from kvdelta.analysis.reading.headline import equal_bits_headline
from kvdelta.analysis.reading.joined import gather
from kvdelta.analysis.reading.kivi_vs_int4 import EQUAL_BITS, error_specs, kivi_specs, kivi_tables, ratios
from kvdelta.harness.caches.contenders import contenders_of
from kvdelta.harness.options import Options
from kvdelta.harness.subject.prepared import Subject
from kvdelta.schemes.errors import UserError


def kivi_report(options: Options, subject: Subject) -> int:
    """Compare, errors and outliers on the same windows, the tables on stdout, and report.html in the run folder."""
    run, folder = make_run(contenders_of(kivi_specs()), options, subject)
    say(*run_tables.heading(run))
    for title, table in kivi_tables(run).items():
        terminal.print_table(*table, title)
    say(equal_bits_headline(run, *EQUAL_BITS))
    note("errors, for the report:")
    beside = replace(options, out=str(folder))
    measure_errors(error_specs(), beside, subject, on_note=note)
    note("outliers, for the report:")
    measure_outliers(beside, subject, on_note=note)
    shown = [[name, f"{here:.2f}", str(there)] for name, here, there in ratios(gather([folder]))]
    terminal.print_table(["ratio of errors at 2 bits", "here", "published"], shown)
    try:
        check_libraries()
    except UserError as error:  # the tables stand above
        note(f"no page: {error}; then kvdelta report {folder}")
    else:
        write_page([folder], folder / "report.html", typed())
    return report_failures(run)
