"""
Where a run computes: its device and the numbers that the device has, the processes that torchrun started, its memory,
and how Ctrl-C reaches it.
"""
import ctypes
import datetime
import os
import re
import signal
import sys

import torch
import torch.distributed as dist

from stlm.console import Failure, Progress

COMPILING_PAYS = 1000   # steps: compiling takes about a minute, and saves some hundredths of a second of each (an estimate)
# TFLOP/s in 16-bit numbers without sparsity, by NVIDIA's data sheets; a name may be part of a later one
PEAKS = {'H100 PCIe': 756, 'H100 NVL': 835, 'H100': 989, 'H200 NVL': 835, 'H200': 989, 'A100': 312, 'L4': 121, 'T4': 65}


def pick_device(name='auto', dtype='auto', local_rank=0):
    """(device, context to compute in, one line about both) for a name out of auto, cuda, cuda:1, mps, cpu and a dtype out
    of auto, bfloat16, float16, float32. auto is bfloat16 where the hardware is fast with it, float16 on older NVIDIA
    GPUs, which would emulate bfloat16, and else float32."""
    here = [kind for kind, works in dict(cuda=torch.cuda.is_available(), mps=torch.backends.mps.is_available(), cpu=True).items() if works]
    kind, _, index = (here[0] if name == 'auto' else name).partition(':')
    index = int(index) if index.isdecimal() else local_rank
    if kind not in here or kind == 'cuda' and index >= torch.cuda.device_count():
        raise Failure(f"device={name} isn't on this machine, which has {', '.join(here)} ({torch.cuda.device_count()} of cuda)")
    device = torch.device(kind, index) if kind == 'cuda' else torch.device(kind)
    if kind == 'cuda':
        torch.cuda.set_device(device)
    dtype = native_dtype(device) if dtype == 'auto' else getattr(torch, dtype)
    threads = f', {torch.get_num_threads()} threads' if kind == 'cpu' else ''
    return (device, torch.autocast(kind, dtype, enabled=dtype != torch.float32),
            f'device {device}{threads}, {str(dtype).removeprefix("torch.")}, torch {torch.__version__}')


def native_dtype(device):
    """The fastest numbers that the device has, which it doesn't emulate."""
    if device.type == 'cuda':
        return torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16
    if device.type == 'cpu' and hasattr(torch.cpu, 'get_capabilities'):   # since torch 2.11
        has = torch.cpu.get_capabilities()
        # Intel's avx512_bf16 without AMX trains 0.6 times as fast as float32 (the quick start's model, two cores)
        avx512 = has.get('avx512_bf16') and 'Intel' not in has.get('cpu_name', '')
        return torch.bfloat16 if avx512 or has.get('amx_bf16') else torch.float32
    return torch.float32


def keep_freed_memory():
    """On Linux, glibc gives every large tensor back to the system when it is freed, and pays for its pages anew at
    the next one: a quarter of a training step on a CPU. From now on it keeps them (mallopt(3))."""
    libc = ctypes.CDLL(None) if sys.platform == 'linux' else None
    if hasattr(libc, 'mallopt'):
        libc.mallopt(-4, 0)    # M_MMAP_MAX
        libc.mallopt(-1, -1)   # M_TRIM_THRESHOLD


def peak_memory(device):
    """The most bytes that this process has held so far, or None where nothing tells (Windows): tensors on a GPU, else
    all memory, what it has read of mapped files included."""
    if device.type == 'cuda':
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:   # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == 'darwin' else 1024)


def peak_flops(device):
    """Floating-point operations per second that the device reaches at most, or None where PEAKS doesn't know it."""
    name = torch.cuda.get_device_name(device) if device.type == 'cuda' else ''
    return next((1e12 * peak for known, peak in PEAKS.items() if re.search(rf'\b{known}\b', name)), None)


class Scaler(torch.amp.GradScaler):
    """float16 has no small numbers: the loss is multiplied by a scale, so that gradients don't vanish. A step whose
    gradients overflow is skipped, and the scale halved. Of other dtypes it leaves everything as it is."""

    def __init__(self, device, dtype):
        super().__init__(device, enabled=dtype == torch.float16)
        self.skipped = 0

    def state_dict(self):
        return super().state_dict() | dict(skipped=self.skipped)

    def load_state_dict(self, state):
        self.skipped = state.pop('skipped')
        if self.is_enabled():
            super().load_state_dict(state)

    def step_all(self, optimizers, norm):
        """Each optimizer's step, or none's: clipping has spread an overflow to the gradients of all."""
        if not self.is_enabled() or norm.isfinite():
            for each in optimizers:
                self.step(each)
        before = self.get_scale()
        self.update()
        self.skipped += self.get_scale() < before


class Machine:
    """torchrun starts a script once for each GPU and sets RANK, LOCAL_RANK and WORLD_SIZE; without it there is one
    process. The first process speaks and writes; the others wait here until it has prepared and checked everything."""

    def __init__(self, device='auto', dtype='auto'):
        self.rank, self.world = int(os.environ.get('RANK', 0)), int(os.environ.get('WORLD_SIZE', 1))
        self.first = self.rank == 0
        self.device, self.autocast, self.line = pick_device(device, dtype, int(os.environ.get('LOCAL_RANK', 0)))
        self.dtype = self.autocast.fast_dtype if self.autocast._enabled else torch.float32
        self.stopped = ''   # why the run has to stop
        keep_freed_memory()
        if self.world > 1:
            backend = 'nccl' if self.device.type == 'cuda' else 'gloo'
            dist.init_process_group(backend, timeout=datetime.timedelta(hours=3))
        if not self.first:
            dist.barrier()

    def say(self, message):
        """Where nobody listens any more (`| head -1`), the run stops."""
        try:
            if self.first:
                print(message, flush=True)
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            self.stopped = 'nobody listens'

    def stop(self, signum, frame):
        """Ctrl-C ends the step or the evaluation, saves and stops; a second one stops at once."""
        if self.stopped:
            sys.exit('stopped without saving')
        self.stopped = signal.Signals(signum).name

    def watch(self, what):
        """Progress of an evaluation, which a stop ends at once."""
        progress = Progress(what)

        def show(done):
            if self.stopped:
                raise KeyboardInterrupt
            progress(done)
        return show

    def ready(self, model, compile='auto', steps=0):
        """The model as it is trained for so many steps: compiled, on all GPUs. From here on Ctrl-C saves."""
        auto = compile == 'auto' and self.device.type == 'cuda' and steps >= COMPILING_PAYS
        if auto or str(compile) in ('yes', 'True'):
            model = self.compiled(model)
        if self.world > 1:
            if self.first:
                dist.barrier()   # the others may go on
            return torch.nn.parallel.DistributedDataParallel(model, broadcast_buffers=False)
        for name in ('SIGINT', 'SIGTERM', 'SIGHUP'):   # torchrun has its own way with signals
            number = getattr(signal, name, None)   # Windows has no SIGHUP
            if number and signal.getsignal(number) != signal.SIG_IGN:   # nohup ignores it
                signal.signal(number, self.stop)
        return model

    def compiled(self, model):
        if self.device.type == 'cuda' and not torch.utils._triton.has_triton():
            self.say("not compiled: Triton, torch.compile's compiler for GPUs, is missing (on Windows: pip install triton-windows)")
            return model
        self.say('compiled: the first steps take a minute more')
        torch._dynamo.config.suppress_errors = True   # what can't be compiled runs as it is
        model.compile()
        return model

    def part_of(self, grad_accum):
        """How many of a step's forward passes are each process's."""
        if grad_accum % self.world:
            raise Failure(f'grad_accum={grad_accum} must be a multiple of the number of processes, {self.world}')
        return grad_accum // self.world

    def mean(self, x):
        """The mean of a tensor's number over all processes."""
        if self.world > 1:
            x = x.clone()
            dist.all_reduce(x)
        return x / self.world

    def state_dict(self):
        cuda = torch.cuda.get_rng_state() if self.device.type == 'cuda' else None
        return dict(rng=torch.get_rng_state(), cuda_rng=cuda)

    def load_state_dict(self, state):
        torch.set_rng_state(state['rng'])
        if not self.first:   # the state is the first process's
            torch.manual_seed(torch.randint(2**62, ()).item() + self.rank)
        elif state['cuda_rng'] is not None and self.device.type == 'cuda':
            torch.cuda.set_rng_state(state['cuda_rng'])

    def close(self):
        if self.world > 1:
            dist.barrier()   # gloo aborts a process whose peer is gone already
            dist.destroy_process_group()
