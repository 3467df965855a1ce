"""The verdict on a run: which code a command exits with."""

from kvdelta.analysis.cli.runs import AUDIT_FAILED, ROW_FAILED, report_failures, worst


def test_a_row_that_failed_has_a_code_of_its_own(run, capsys):
    assert report_failures(run) == 0
    run.contenders[1].error = "RuntimeError: no more"
    run.audit.failures = {"int8": ["it failed: RuntimeError: no more"]}
    assert report_failures(run) == ROW_FAILED == 4
    assert capsys.readouterr().err == "failed: int8: RuntimeError: no more\n"


def test_a_failed_audit_decides(run, capsys):
    run.contenders[1].error = "RuntimeError: no more"
    run.audit.failures = {"int8": ["it failed: RuntimeError: no more"], "int4": ["cache not read"]}
    assert report_failures(run) == AUDIT_FAILED == 3
    assert capsys.readouterr().err == "failed: int8: RuntimeError: no more\naudit failed: int4: cache not read\n"
    assert [worst(codes) for codes in ([0, 0], [0, 4], [4, 3], [3, 0])] == [0, 4, 3, 3]
