"""
Where a run computes: its device, the numbers that the device has, and its memory.
"""
import ctypes
import sys

import torch

from configurator import Failure


def pick_device(name='auto', dtype='auto', local_rank=0):
    """(device, context to compute in, one line about both) for a name out of auto, cuda, cuda:1, mps, cpu and
    a dtype out of auto, bfloat16, float32. auto takes bfloat16 only where the hardware computes in it: older
    GPUs emulate it, slowly, and float16 overflows."""
    there = dict(cuda=torch.cuda.is_available(), mps=torch.backends.mps.is_available(), cpu=True)
    if name == 'auto':
        name = next(kind for kind in there if there[kind])
    kind, _, index = name.partition(':')
    index = int(index) if index.isdecimal() else local_rank
    if not there.get(kind) or kind == 'cuda' and index >= torch.cuda.device_count():
        found = ', '.join(kind for kind in there if there[kind])
        raise Failure(f"device={name} isn't on this machine, which has {found} ({torch.cuda.device_count()} of cuda)")
    device = torch.device(kind, index) if kind == 'cuda' else torch.device(kind)
    native = kind == 'cpu' and any(on for flag, on in torch.cpu.get_capabilities().items() if 'bf16' in flag)
    if kind == 'cuda':
        torch.cuda.set_device(device)
        native = torch.cuda.get_device_capability(device) >= (8, 0)
    bfloat16 = dtype == 'bfloat16' or dtype == 'auto' and native
    threads = f', {torch.get_num_threads()} threads' if kind == 'cpu' else ''
    return (device, torch.autocast(kind, torch.bfloat16, enabled=bfloat16),
            f'device {device}{threads}, {"bfloat16" if bfloat16 else "float32"}, torch {torch.__version__}')


def keep_freed_memory():
    """On Linux, glibc gives every large tensor back to the system when it is freed, and pays for its pages anew at
    the next one: a quarter of a training step on a CPU. From now on it keeps them (mallopt(3))."""
    libc = ctypes.CDLL(None) if sys.platform == 'linux' else None
    if hasattr(libc, 'mallopt'):
        libc.mallopt(-4, 0)    # M_MMAP_MAX
        libc.mallopt(-1, -1)   # M_TRIM_THRESHOLD


def peak_memory(device):
    """The most bytes that this process has held so far: tensors on a GPU, else all memory, what it has read
    of mapped files included."""
    if device.type == 'cuda':
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == 'win32':
        return float('nan')
    import resource
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == 'darwin' else 1024)
