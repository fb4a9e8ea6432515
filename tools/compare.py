"""
Runs side by side: their settings that differ, their figures, and their curves as a picture.

    python -m tools.compare out/one out/four     # writes compare.svg, which any browser opens

A run that is still training counts as far as it has come. The table starts with the settings, then bits per byte:
the last and the lowest held-out ones of log.csv.
"""
file = 'compare.svg'   # the picture

import csv
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent

from configurator import Failure, configure
if __name__ == '__main__':
    configure(globals(), argv=[arg for arg in sys.argv[1:] if arg.startswith('-')])

from stlm import run
from tools.pictures import BLUE, GREY, ORANGE, PURPLE, Picture

MARKS = [(ORANGE, 'circle'), (BLUE, 'square'), (PURPLE, 'cross'), (GREY, 'triangle')]   # as no one tells colours alone


def read(folder):
    """(settings, [(text read in MB, held-out bits per byte), ...], all rows) of a run's folder."""
    path = pathlib.Path(folder)
    last = path / 'ckpt.pt'
    checkpoint = run.load_checkpoint(last if last.exists() else run.newest_checkpoint(path))
    try:
        with open(path / 'log.csv', encoding='utf-8') as lines:
            rows = list(csv.DictReader(lines))
        curve = [(float(row['bytes']) / 1e6, float(row['val_bpb'])) for row in rows if row['val_bpb']]
    except (OSError, KeyError, ValueError):
        raise Failure(f'{path / "log.csv"}: missing, or not as train.py wrote it')
    return checkpoint['settings'], curve, rows


def table(names, found):
    """The lines to print: settings that differ, and figures, a column for each run."""
    lines = [['', *names]]
    for name in found[0][0]:
        values = [str(settings.get(name)) for settings, _, _ in found]
        if len(set(values)) > 1 and name not in ('out_dir', 'init_from'):
            lines.append([name, *values])
    lines.append(['text read, MB', *(f'{curve[-1][0]:.2f}' for _, curve, _ in found)])
    lines.append(['minutes', *(f'{float(rows[-1]["seconds"]) / 60:.1f}' for _, _, rows in found)])
    lines.append(['bits per byte, last', *(f'{curve[-1][1]:.4f}' for _, curve, _ in found)])
    lines.append(['bits per byte, lowest', *(f'{min(bpb for _, bpb in curve):.4f}' for _, curve, _ in found)])
    widths = [max(map(len, column)) for column in zip(*lines)]
    return [f'{line[0]:{widths[0]}}  ' + '  '.join(f'{cell:>{width}}' for cell, width in zip(line[1:], widths[1:]))
            for line in lines]


def mark(picture, kind, x, y, colour, r=6):
    if kind == 'circle':
        picture.add('circle', cx=x, cy=y, r=r, fill=colour)
    elif kind == 'square':
        picture.add('rect', x=x - r, y=y - r, width=2 * r, height=2 * r, fill=colour)
    elif kind == 'triangle':
        picture.add('polygon', points=f'{x:.1f},{y - r:.1f} {x - r:.1f},{y + r:.1f} {x + r:.1f},{y + r:.1f}', fill=colour)
    else:
        picture.line([(x - r, y - r), (x + r, y + r)], colour)
        picture.line([(x - r, y + r), (x + r, y - r)], colour)


def draw(names, curves):
    """Held-out bits per byte against the text read. The start, which is far above, is cut off where it flattens all."""
    left, right, top, bottom = 90, 760, 40, 440
    picture = Picture(520, 'Held-out bits per byte of ' + ' and '.join(names))
    most = max(x for curve in curves for x, _ in curve) or 1.0
    ends = [y for curve in curves for _, y in curve[1:] or curve]
    low, high = min(ends), max(ends)
    room = max(0.1 * (high - low), 0.05)   # small differences stay small, for most are luck
    low, high = low - room, high + room

    def place(point):
        x, y = point
        return left + (right - left) * x / most, bottom - (bottom - top) * (min(y, high) - low) / (high - low)

    picture.line([(left, top), (left, bottom), (right, bottom)])
    for i in range(5):
        y = low + (high - low) * i / 4
        picture.text(left - 8, place((0, y))[1], f'{y:.2f}', 15, anchor='end')
        picture.text(place((most * i / 4, low))[0], bottom + 18, f'{most * i / 4:.3g}', 15)
    picture.text((left + right) / 2, bottom + 48, 'text read, MB')
    picture.text(left - 60, top - 20, 'held-out bits per byte', anchor='start')
    heights = []
    order = sorted(range(len(curves)), key=lambda i: -curves[i][-1][1])     # from the top of the picture down
    for i in order:
        colour, kind = MARKS[i % len(MARKS)]
        points = [place(point) for point in curves[i]]
        picture.line(points, colour, dashed=i >= len(MARKS))
        for (x, y), (_, bits) in zip(points, curves[i]):
            if bits <= high:
                mark(picture, kind, x, y, colour)
            else:
                picture.text(x + 8, top - 2 + 20 * order.index(i), f'↑ {bits:.2f}', 15, colour, 'start')
        heights.append(max(points[-1][1], heights[-1] + 22 if heights else top))   # names don't overlap
        picture.text(points[-1][0] + 14, heights[-1], names[i], 16, colour, anchor='start')
    return picture


if __name__ == '__main__':
    folders = [arg for arg in sys.argv[1:] if not arg.startswith('-')]
    if not folders:
        raise Failure('give the folders of some runs: python -m tools.compare out/one out/four')
    found = [read(folder) for folder in folders]
    for folder, (_, curve, _) in zip(folders, found):
        if not curve:
            raise Failure(f'{folder}: no held-out evaluation yet; the first comes at step 0')
    names = [pathlib.Path(folder).name for folder in folders]
    names = folders if len(set(names)) < len(names) else names
    print('\n'.join(table(names, found)))
    pathlib.Path(file).write_text(draw(names, [curve for _, curve, _ in found]).svg(), encoding='utf-8')
    print(f'{file}: open it in a browser')
