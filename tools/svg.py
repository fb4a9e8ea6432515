"""
Pictures as SVG, one family: no background, and only colours that stand out from white and from black, so that a page may
be light or dark. Colour is never the only sign: every part has its name beside it, and what differs is dashed, hatched or
has another mark.
"""
import math
from html import escape

from stlm.console import visible

GREY, BLUE, ORANGE, PURPLE = '#767c85', '#3a7dc8', '#c2600f', '#9a60cc'   # tests/test_docs.py checks their contrast
MARKS = [(ORANGE, 'circle'), (BLUE, 'square'), (PURPLE, 'cross'), (GREY, 'triangle')]


class Picture:
    """SVG, a shape a line. Places are in pixels of a picture 1000 wide, from its upper left corner."""

    def __init__(self, height, title):
        self.height, self.title, self.shapes = height, title, []

    def add(self, kind, text=None, **attributes):
        named = ' '.join(f'{name.replace("_", "-")}="{value:.1f}"' if isinstance(value, float) else
                         f'{name.replace("_", "-")}="{value}"' for name, value in attributes.items())
        self.shapes.append(f'<{kind} {named}/>' if text is None else f'<{kind} {named}>{escape(visible(text))}</{kind}>')

    def text(self, x, y, text, size=18, colour=GREY, anchor='middle'):
        self.add('text', text, x=x, y=y + 0.36 * size, font_size=size, fill=colour, text_anchor=anchor)

    def box(self, x, y, width, height, text='', colour=GREY, filled=True, dashed=False, size=18):
        """With its text in the middle: white on a colour, or only its outline."""
        self.add('rect', x=x, y=y, width=width, height=height, rx=5, fill=colour if filled else 'none', stroke=colour,
                 stroke_width=2, **dict(stroke_dasharray='5 4') if dashed else {})
        for i, line in enumerate(lines := text.split('\n')):
            middle = y + height / 2 + (i - (len(lines) - 1) / 2) * 1.25 * size
            self.text(x + width / 2, middle, line, size, 'white' if filled else colour)

    def symbol(self, x, y, symbol, width=24, **how):
        """A byte, or END, in a box; a space as the edge below a gap."""
        name = {256: 'END', 32: '', 10: '\\n'}.get(symbol, chr(symbol) if 32 < symbol < 127 else f'{symbol:02x}')
        self.box(x, y, width, 30, name, size=12 if len(name) > 1 and width < 40 else 18, **how)
        if symbol == 32:
            colour = 'white' if how.get('filled', True) else how['colour']
            middle = x + width / 2
            self.add('path', d=f'M{middle - 6:.1f} {y + 15:.1f}v6h12v-6', fill='none', stroke=colour, stroke_width=2)

    def line(self, points, colour=GREY, width=2.5, arrow=False, dashed=False):
        self.add('polyline', points=' '.join(f'{x:.1f},{y:.1f}' for x, y in points), fill='none', stroke=colour,
                 stroke_width=width, **dict(stroke_dasharray='5 4') if dashed else {})
        if arrow:
            (x0, y0), (x1, y1) = points[-2:]
            length = math.hypot(x1 - x0, y1 - y0)
            dx, dy = 9 * (x1 - x0) / length, 9 * (y1 - y0) / length
            self.add('polygon', points=f'{x1:.1f},{y1:.1f} {x1 - dx - dy / 2:.1f},{y1 - dy + dx / 2:.1f} '
                                       f'{x1 - dx + dy / 2:.1f},{y1 - dy - dx / 2:.1f}', fill=colour)

    def svg(self):
        return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1000 {self.height}" role="img" '
                'font-family="DejaVu Sans, Verdana, Arial, sans-serif" font-weight="600">\n'
                f'<title>{escape(visible(self.title))}</title>\n' + '\n'.join(self.shapes) + '\n</svg>\n')


# --------------------------------------------------------------------------------------------------
# Curves

def round_ticks(low, high, most=6):
    """{place on an axis from low to high: its label}: at most so many multiples of 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10((high - low) / most))
    step = next(step for step in (power, 2 * power, 5 * power, 10 * power) if (high - low) / step <= most)
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    multiples = range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)
    return {i * step: f'{i * step:.{decimals}f}' for i in multiples}


def cut_at(points, high):
    """The parts of a curve [(x, y), ...] that are not above y = high: each ends, or begins, where the curve crosses it."""
    parts, part = [], []
    for (x0, y0), (x1, y1) in zip([points[0], *points], points):
        if (y0 > high) != (y1 > high):
            part.append((x0 + (x1 - x0) * (high - y0) / (y1 - y0), high))
            if y1 > high:
                parts, part = [*parts, part], []
        if y1 <= high:
            part.append((x1, y1))
    return [*parts, part] if part else parts


class Chart(Picture):
    """Curves over two axes with round ticks."""
    left, top, bottom = 90, 66, 440

    def __init__(self, title, x_title, y_title, x_range, y_range, right=760):
        super().__init__(520, title)
        self.x_range, self.y_range, self.right = x_range, y_range, right   # right of it is room for names
        left, bottom = self.left, self.bottom
        self.line([(left, self.top), (left, bottom), (right, bottom)])
        for x, label in round_ticks(*x_range).items():
            self.line([(self.place(x, 0)[0], bottom), (self.place(x, 0)[0], bottom + 5)])
            self.text(self.place(x, 0)[0], bottom + 18, label, 15)
        for y, label in round_ticks(*y_range).items():
            self.line([(left - 5, self.place(0, y)[1]), (left, self.place(0, y)[1])])
            self.text(left - 12, self.place(0, y)[1], label, 15, anchor='end')
        self.text((left + right) / 2, bottom + 48, x_title)
        self.text(left - 60, 14, y_title, anchor='start')

    def place(self, x, y):
        """Pixels of a point; above the upper end of the y axis it is the end."""
        (x0, x1), (y0, y1) = self.x_range, self.y_range
        return (self.left + (self.right - self.left) * (x - x0) / (x1 - x0),
                self.bottom - (self.bottom - self.top) * (min(y, y1) - y0) / (y1 - y0))

    def mark(self, kind, x, y, colour, r=6, hollow=False):
        how = dict(fill='none', stroke=colour, stroke_width=2) if hollow else dict(fill=colour)
        if kind == 'circle':
            self.add('circle', cx=x, cy=y, r=r, **how)
        elif kind == 'square':
            self.add('rect', x=x - r, y=y - r, width=2 * r, height=2 * r, **how)
        elif kind == 'triangle':
            self.add('polygon', points=f'{x:.1f},{y - r:.1f} {x - r:.1f},{y + r:.1f} {x + r:.1f},{y + r:.1f}', **how)
        elif kind == 'diamond':
            self.add('polygon', points=f'{x:.1f},{y - r:.1f} {x - r:.1f},{y:.1f} {x:.1f},{y + r:.1f} {x + r:.1f},{y:.1f}', **how)
        else:
            self.line([(x - r, y - r), (x + r, y + r)], colour)
            self.line([(x - r, y + r), (x + r, y - r)], colour)

    def curve(self, points, colour, kind, dashed=False, hollow=False):
        """A line through the points, with a mark at each. What is above the upper end of the axis is cut off."""
        for part in cut_at(points, self.y_range[1]):
            self.line([self.place(*point) for point in part], colour, dashed=dashed)
        for x, y in points:
            if y <= self.y_range[1]:
                self.mark(kind, *self.place(x, y), colour, r=9 if hollow else 6, hollow=hollow)
