"""
What a script says to its user: errors of one line, progress, durations, and commands to paste. It imports nothing of ours.
"""
import os
import re
import shlex
import sys
import time

FIRST = os.environ.get('RANK', '0') == '0'   # is it the first of the processes that torchrun starts, which speaks for all?


class Failure(Exception):
    """What a user can cause. Its message says in one line what happened, with which value, and what to do; a script
    prints that line and ends, a notebook gets an exception."""

    def __str__(self):
        return ' '.join(super().__str__().split())


def speak_plainly():
    """What a user can cause ends a script in one line, and a letter that a terminal lacks is no error."""
    sys.excepthook = one_line
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, 'reconfigure'):
            stream.reconfigure(encoding=None if stream.isatty() else 'utf-8', errors='backslashreplace')


def check_torch():
    """Before the slow imports: where torch isn't installed, or is too old, that is all there is to say."""
    from importlib import metadata   # which torch imports, too
    try:
        version = metadata.version('torch')
    except metadata.PackageNotFoundError:
        raise Failure(f'torch is not installed in {sys.prefix}: activate the environment, or see docs/reference.md, Installing')
    if tuple(map(int, version.split('.')[:2])) < (2, 9):
        raise Failure(f'torch {version} is too old, 2.9 or newer is needed: pip install -r requirements.txt')


def one_line(kind, error, trace):
    """sys.excepthook: a line for what a user can cause; anything else is our mistake and keeps its traceback."""
    where = getattr(error, 'filename', None)
    if isinstance(error, Failure):
        line = str(error)
    elif isinstance(error, MemoryError) or kind.__name__ == 'OutOfMemoryError' or "can't allocate memory" in str(error):
        line = 'out of memory: give a smaller --batch_size (with train.py a larger --grad_accum) or --num_samples'
    elif isinstance(error, (KeyboardInterrupt, BrokenPipeError)):
        line = 'interrupted' if kind is KeyboardInterrupt else ''
    elif isinstance(error, OSError):
        line = f'{where}: {error.strerror}' if where else str(error)
    else:
        return sys.__excepthook__(kind, error, trace)
    if FIRST:
        print(visible(line), file=sys.stderr, flush=True)
    if kind in (KeyboardInterrupt, BrokenPipeError):
        os._exit(130 if kind is KeyboardInterrupt else 1)   # at once: a closed pipe can't be flushed


def command(script, **flags):
    """A command to paste, as in: python train.py --out_dir="out/my run". Windows' cmd knows only double quotes."""
    def quote(value):
        quoted = shlex.quote(value)
        return quoted if quoted == value or re.search(r'["$`%!]|\\\\|\\$', value) else f'"{value}"'
    return ' '.join(['python', script, *(f'--{name}={quote(str(value))}' for name, value in flags.items())])


def visible(text, keep=''):
    """Text with what no terminal, picture or page should obey written out, as \\x1b: control characters, marks that turn
    the direction of writing, and what is no character by itself."""
    obeyed = '[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]'
    return re.sub(obeyed, lambda found: found[0] if found[0] in keep else ascii(found[0])[1:-1], text)


def duration(seconds):
    """How long it takes: 0:42, 2:05:30, or 3.4 days."""
    if not seconds < 2 * 86400:
        return f'{seconds / 86400:,.1f} days'
    minutes, seconds = divmod(int(seconds), 60)
    return f'{minutes}:{seconds:02}' if minutes < 60 else f'{minutes // 60}:{minutes % 60:02}:{seconds:02}'


class Progress:
    """progress(done), done from `first` to 1, shows one line, each second; what is printed next
    overwrites it. With the size of the whole in bytes it says the rate."""

    def __init__(self, what, first=0.0, size=0):
        self.what, self.first, self.size = what, first, size
        self.start = self.shown = time.monotonic()

    def __call__(self, done):
        now = time.monotonic()
        if not FIRST or now - self.shown < 1 or done <= self.first:
            return
        self.shown = now
        speed = (done - self.first) / (now - self.start)
        rate = f'{self.size * speed / 1e6:.1f} MB/s, ' if self.size else ''
        line = f'{self.what}: {done:4.0%}, {rate}{duration((1 - done) / speed)} left'
        try:
            print(line.ljust(60), end='\r', file=sys.stderr, flush=True)
        except OSError:
            pass   # a terminal that was closed is no reason to stop

    def end(self, result):
        seconds = time.monotonic() - self.start
        print(f'{self.what}: {result}, {seconds:.1f} s'.ljust(60), flush=True)
