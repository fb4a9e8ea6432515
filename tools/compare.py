"""
Runs side by side: their settings that differ, their figures, and their curves as a picture.

    python -m tools.compare out/one out/four     # writes compare.svg, which any browser opens

A run that is still training counts as far as it has come. The table starts with the settings, then bits per byte:
the last and the lowest held-out ones of log.csv.
"""
file = 'compare.svg'   # the picture

import csv
import math
import pathlib
import sys

from configurator import Failure, configure
if __name__ == '__main__':
    configure(globals(), argv=[arg for arg in sys.argv[1:] if arg.startswith('-')])

from stlm import run
from stlm.console import visible
from tools.svg import MARKS, Chart


def read(folder):
    """(settings, [(text read in MB, held-out bits per byte), ...], seconds so far) of a run's folder."""
    path = pathlib.Path(folder)
    last = path / 'ckpt.pt'
    checkpoint = run.load_checkpoint(last if last.exists() else run.newest_checkpoint(path))
    curve, seconds = [], 0.0
    try:
        with open(path / 'log.csv', encoding='utf-8-sig') as lines:
            for row in csv.DictReader(lines):
                seconds = float(row['seconds'])
                if row['val_bpb']:
                    curve.append((float(row['bytes']) / 1e6, float(row['val_bpb'])))
    except (OSError, KeyError, TypeError, ValueError):
        raise Failure(f'{path / "log.csv"}: missing, or not as train.py wrote it')
    if not curve:
        raise Failure(f'{folder}: no held-out evaluation yet; the first comes at step 0')
    for read_so_far, bits in curve:
        if not math.isfinite(bits):
            raise Failure(f'{path / "log.csv"}: after {read_so_far:.2f} MB the bits per byte are not a number ({bits}): it diverged')
    return checkpoint['settings'], curve, seconds


def table(names, found):
    """The lines to print: settings that differ, and figures, a column for each run."""
    lines = [['', *names]]
    for name in dict.fromkeys(name for settings, _, _ in found for name in settings):
        values = [str(settings.get(name, '-')) for settings, _, _ in found]
        if len(set(values)) > 1 and name not in ('out_dir', 'init_from'):
            lines.append([name, *values])
    lines.append(['text read, MB', *(f'{curve[-1][0]:.2f}' for _, curve, _ in found)])
    lines.append(['minutes', *(f'{seconds / 60:.1f}' for _, _, seconds in found)])
    lines.append(['bits per byte, last', *(f'{curve[-1][1]:.4f}' for _, curve, _ in found)])
    lines.append(['bits per byte, lowest', *(f'{min(bpb for _, bpb in curve):.4f}' for _, curve, _ in found)])
    lines = [[visible(cell) for cell in line] for line in lines]
    widths = [max(map(len, column)) for column in zip(*lines)]
    return [f'{line[0]:{widths[0]}}  ' + '  '.join(f'{cell:>{width}}' for cell, width in zip(line[1:], widths[1:]))
            for line in lines]


def draw(names, curves):
    """Held-out bits per byte against the text read. The start, which is far above, is cut off where it flattens all."""
    ends = [y for curve in curves for _, y in curve[1:] or curve]
    low, high = min(ends), max(ends)
    room = max(0.1 * (high - low), 0.05)   # small differences stay small, for most are luck
    most = max(x for curve in curves for x, _ in curve) or 1.0
    picture = Chart('Held-out bits per byte of ' + ' and '.join(names), 'text read, MB', 'held-out bits per byte',
                    (0.0, most), (low - room, high + room))
    order = sorted(range(len(curves)), key=lambda i: -curves[i][-1][1])     # from the top of the picture down
    height, cut = picture.top, 0
    for i in order:
        colour, kind = MARKS[i % len(MARKS)]
        picture.curve(curves[i], colour, kind, dashed=i >= len(MARKS))
        x, y = picture.place(*curves[i][-1])
        height = max(y, height)
        picture.text(x + 14, height, names[i] if len(names[i]) < 24 else f'…{names[i][-22:]}', 16, colour, anchor='start')
        height += 22   # names don't overlap
        bits = curves[i][0][1]
        if bits > high + room:
            x = picture.left + 196 + 80 * cut
            picture.mark(kind, x, picture.top - 18, colour)
            picture.text(x + 12, picture.top - 18, f'{bits:.2f}', 15, colour, 'start')
            cut += 1
    if cut:
        picture.text(picture.left + 8, picture.top - 18, 'above, at the start:', 15, anchor='start')
    return picture


def main(folders, file):
    if not folders:
        raise Failure('name the folders of some runs: python -m tools.compare out/one out/four')
    found = [read(folder) for folder in folders]
    names = [pathlib.Path(folder).name for folder in folders]
    names = folders if len(set(names)) < len(names) else names
    print('\n'.join(table(names, found)))
    pathlib.Path(file).write_text(draw(names, [curve for _, curve, _ in found]).svg(), encoding='utf-8')
    print(f'{visible(file)}: open it in a browser')


if __name__ == '__main__':
    main([arg for arg in sys.argv[1:] if not arg.startswith('-')], file)
