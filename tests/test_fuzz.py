"""A short run of fuzz.py, and one with a fault planted, which it must find."""
import zipfile

from helpers import run


def trust_checksums():
    zipfile.ZipFile.testzip = lambda self: None


def test_damaged_files_and_odd_settings_end_right_or_in_one_line(tmp_path):
    status, out, err = run(tmp_path, 'tests/fuzz.py', '--trials=80', '--seed=1')
    assert status == 0 and '80 tried' in out and ' 0 findings' in out, out + err


def test_a_checkpoint_that_nobody_checks_is_found(tmp_path):
    status, out, err = run(tmp_path, 'tests/fuzz.py', '--trials=200', '--seed=1', '--kinds=checkpoint', first=trust_checksums)
    assert status == 1 and 'checkpoint: different' in out, out + err
