"""The one place that turns an exception into what a person reads: one line with the remedy, and an exit status.

Only the standard library is imported: the classes of other packages are known by their names.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import platform
import re
import shlex
import signal
import ssl
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from types import FrameType
from typing import Any

BUG = 1
"""Exit status of what nobody but ardistill can have caused."""
USAGE = 2
"""Exit status of what a user, a disk, a network or a missing extra caused."""
SAME_COMMAND = "what is there is whole, the same command again goes on"

_LONGEST = 900
_warned: set[str] = set()
_ENDING = tuple(getattr(signal, x) for x in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, x))
_MEMORY = (
    "lower the batch size (--training.batch_size; --shard_size of record), or train with "
    "--training.gradient_checkpointing true or --lora_rank 16"
)
_DISK = {
    (errno.ENOSPC, errno.EDQUOT, errno.EFBIG): f"free space there, or name another folder; {SAME_COMMAND}",
    (errno.EACCES, errno.EPERM, errno.EROFS): "name a folder that you may read and write, or change its permissions",
    (errno.ENOENT,): "check the path",
    (errno.EISDIR,): "name a file, this is a folder",
    (errno.ENOTDIR,): "name another path, a part of this one is a file",
    (errno.ENAMETOOLONG, errno.ELOOP): "name a shorter path",
    (errno.EEXIST, errno.ENOTEMPTY, errno.EBUSY, errno.EXDEV): "name a new folder",
    (errno.EMFILE, errno.ENFILE): "allow more open files: ulimit -n 65536",
    (errno.EADDRINUSE,): "another launch uses this port: accelerate launch --main_process_port 0 takes a free one",
    (errno.EIO, errno.ESTALE, errno.ENODEV, errno.ENXIO): f"see whether the disk is well; {SAME_COMMAND}",
}
"""Error numbers of the operating system, and what to do about them."""
_HUB = {
    "GatedRepoError": "accept its terms on its page at huggingface.co, then log in with: hf auth login",
    "RepositoryNotFoundError": "check the id; if it is private, log in with: hf auth login",
    "RevisionNotFoundError": "check the revision",
    "HFValidationError": "name a folder that exists or a Hub id such as facebook/DiT-XL-2-256",
    "OfflineModeIsEnabled": "unset HF_HUB_OFFLINE, or name a local folder",
    "LocalEntryNotFoundError": "unset HF_HUB_OFFLINE and check the network, or name a local folder",
    "EntryNotFoundError": "check the id: it lacks a file that is needed",
}
"""Exceptions of huggingface_hub, the narrowest first."""
_NETWORK = {
    "requests", "httpx", "httpx2", "httpcore", "urllib3", "urllib", "aiohttp", "socket", "ssl", "botocore",
    "aiobotocore", "s3fs", "gcsfs", "google", "adlfs", "azure", "huggingface_hub",
}  # fmt: skip
"""Packages whose exceptions come from a network."""
_NO_NETWORK = f"check the network, the address and your credentials; {SAME_COMMAND}"
_RUNTIME = {
    r"out of memory|can't allocate memory|cannot allocate memory|not enough memory": _MEMORY,
    r"DataLoader worker .* (killed|exited)": "use fewer workers, or a machine with more memory or a larger /dev/shm",
    r"PytorchStreamWriter|unexpected pos \d+|Parent directory .* does not exist|cannot be opened": (
        f"free space there, or name a folder that you may write; {SAME_COMMAND}"
    ),
    r"PytorchStreamReader|central directory|[Ii]nvalid magic number|header is too (large|small)|"
    r"deserializing (the )?header|corrupted": "the file is cut or damaged: download or write it again",
    r"unable to mmap|unable to open file": "check the path and the limits of memory (ulimit -v)",
    r"EADDRINUSE|address already in use": _DISK[errno.EADDRINUSE,],
    r"[Cc]onnection (was )?(closed|reset|refused)|[Tt]imed? ?out|NCCL|[Gg]loo|DistStore|Broken pipe": (
        f"another process of the launch ended or cannot be reached, look for its own line; {SAME_COMMAND}"
    ),
    r"Storage size calculation overflowed": "a size that was asked for is too large: take a smaller one",
    r"no kernel image|driver|Torch not compiled with|CUDA-capable|busy or unavailable|device-side|uncorrectable": (
        "see that torch, driver and device fit together (python -m torch.utils.collect_env), or work with --device cpu"
    ),
    r"not implemented for|Could not run 'aten|not (currently )?(implemented|supported) (for|on)": (
        "this device or dtype lacks an operation that the model needs: use another dtype, or --device cpu"
    ),
}
"""What torch says in a RuntimeError that is no fault of the program, and what to do about it."""
_EXTRAS = {"torch_fidelity": "fid", "peft": "lora"} | dict.fromkeys(
    ("transformers", "datasets", "sentencepiece", "jinja2", "tokenizers"), "text"
)
_ON_PYPI = {"PIL": "pillow", "yaml": "pyyaml", "google": "protobuf", "cv2": "opencv-python"}


class Interrupted(KeyboardInterrupt):
    """SIGINT, SIGTERM or SIGHUP asked this process to end; ``args[0]`` is the signal's number."""


def version(package: str = "ardistill") -> str:
    """The installed version of a package."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "(not installed)"


def explain(error: BaseException) -> tuple[int, str]:
    """Exit status and one line for an exception, or for what it was raised from.

    Returns:
        130, 143 or 129 of an interrupt; `USAGE` of what a user, a disk, a network, a lack of memory or a missing extra
        caused, with what to do about it; `BUG` of anything else.
    """
    cause: BaseException | None = error
    while cause is not None:
        if (found := _known(cause)) is not None:
            return found[0], _shorten(found[1])
        cause = cause.__cause__
    text = _shorten(f"{type(error).__name__}: {_flat(error)}")
    return BUG, f"{text} (this is a bug in ardistill {version()})"


def _known(error: BaseException) -> tuple[int, str] | None:
    """Exit status and line of an exception that has another cause than a bug."""
    if isinstance(error, KeyboardInterrupt):
        number = signal.Signals(error.args[0] if isinstance(error, Interrupted) else signal.SIGINT)
        return 128 + number, f"ended by {number.name}"
    classes, text = type(error).__mro__, _flat(error)
    names, packages = {x.__name__ for x in classes}, {x.__module__.partition(".")[0] for x in classes}
    remedy: str | None = None
    if isinstance(error, MemoryError) or "OutOfMemoryError" in names:
        remedy = _MEMORY
    elif isinstance(error, ImportError):
        return _missing(error)
    elif hub := [advice for name, advice in _HUB.items() if name in names]:
        remedy = hub[0]
    elif packages & _NETWORK or isinstance(error, (ConnectionError, TimeoutError, ssl.SSLError)):
        remedy = _NO_NETWORK
    elif isinstance(error, OSError):
        return USAGE, _of_disk(error)
    elif found := re.search(r"os error (\d+)\)|code: (\d+)", text):  # safetensors, written in Rust
        remedy = _disk_remedy(int(found[1] or found[2]))
    elif (
        isinstance(error, (RuntimeError, AssertionError)) and "ValueError" not in names
    ) or "SafetensorError" in names:
        remedy = next((advice for said, advice in _RUNTIME.items() if re.search(said, text)), None)
        if remedy is None and "SafetensorError" in names:
            remedy = "the file is cut or damaged: download or write it again"
    elif names & {"JSONDecodeError", "UnicodeDecodeError", "YAMLError", "UnpicklingError", "BadZipFile", "EOFError"}:
        text, remedy = f"a file cannot be read: {text}", "write or download it again; --debug shows which one it is"
    elif isinstance(error, ValueError) or type(error) is Exception:  # a bare one: no code of ours raises it
        return USAGE, text
    elif packages & {"fsspec", "pyarrow", "datasets", "PIL"}:
        remedy = "check the path or the file"
    return None if remedy is None else (USAGE, f"{text}; {remedy}")


def _of_disk(error: OSError) -> str:
    """One line for what the operating system refused; of the package's own messages, the message."""
    if error.errno is None:  # the message of a package, perhaps of what the Hub said
        origin = {x.__name__ for x in type(error.__cause__ or error.__context__).__mro__}
        advice = next((f"; {advice}" for name, advice in _HUB.items() if name in origin), "")
        return f"{_flat(error)}{advice}"
    where = " and ".join(str(x) for x in (error.filename, error.filename2) if x is not None)
    text = f"{where}: {error.strerror}" if where else _flat(error)
    variable = cache_variable(error)
    if variable is not None:
        return f"{text}; this is a cache: set {variable} to a folder that you may write"
    return f"{text}; {_disk_remedy(error.errno)}"


def _disk_remedy(number: int) -> str:
    return next((advice for numbers, advice in _DISK.items() if number in numbers), f"see to it; {SAME_COMMAND}")


def cache_variable(error: BaseException) -> str | None:
    """The environment variable that says where a cache lies which cannot be written; None of any other error."""
    name = getattr(error, "filename", None)
    if not isinstance(error, OSError) or not isinstance(name, (str, bytes)) or error.errno == errno.ENOSPC:
        return None
    path, caches = Path(os.path.abspath(os.fsdecode(name))), Path(os.environ.get("XDG_CACHE_HOME", "~/.cache"))
    for variable, usual in (
        ("HF_HUB_CACHE", None),
        ("HF_DATASETS_CACHE", None),
        ("HF_HOME", caches / "huggingface"),
        ("TORCH_HOME", caches / "torch"),
        ("MPLCONFIGDIR", None),
        ("XDG_CACHE_HOME", caches),
    ):
        folder = os.environ.get(variable) or usual
        if folder is None:
            continue
        cache = Path(os.path.abspath(os.path.expanduser(folder)))
        made = {cache, *cache.parents} - {Path(os.path.abspath(os.path.expanduser("~"))).parent, Path("/")}
        if path.is_relative_to(cache) or (path in made and path != Path.cwd()):
            return variable
    return None


def _missing(error: ImportError) -> tuple[int, str] | None:
    """What to install; None where a module of ardistill itself is missing, or lacks a name."""
    text = _flat(error)
    if "pip install" in text:
        return USAGE, text
    name = (error.name or "").partition(".")[0]
    if name == "ardistill":
        return None
    if isinstance(error, metadata.PackageNotFoundError) or not name:
        return USAGE, f"{text}; install what it names with pip"
    if name == "torchvision":
        return USAGE, f"{text}; pip install torchvision, in the build made for your torch (https://pytorch.org)"
    if name in _EXTRAS:
        return USAGE, f"{text}; pip install 'ardistill[{_EXTRAS[name]}]'"
    upgrade = "" if isinstance(error, ModuleNotFoundError) else "-U "
    return USAGE, f"{text}; pip install {upgrade}{_ON_PYPI.get(name, name)}"


def _flat(error: BaseException) -> str:
    """The message of an exception in one line, without colours; its class's name where it has none."""
    return " ".join(re.sub(r"\x1b\[[\d;]*m", "", str(error)).split()) or type(error).__name__


def _shorten(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST // 2]} ... {text[-_LONGEST // 2 :]}"


def ready_process() -> None:
    """Let stdout and stderr take any text: what their encoding lacks is escaped, and a closed one leads nowhere. A
    warning is one line, once.
    """
    warnings.showwarning = _show_warning
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    text = " ".join(str(message).split())
    if text not in _warned:
        _warned.add(text)
        say(f"warning: {_shorten(text)}")


def say(text: str) -> None:
    """Write one line to stderr, below whatever bars are being drawn."""
    bars = getattr(getattr(sys.modules.get("tqdm"), "tqdm", None), "_instances", ())
    with contextlib.suppress(OSError, ValueError, RuntimeError):
        for bar in list(bars):
            bar.close()
    with contextlib.suppress(OSError, ValueError):
        print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def one_line(name: Callable[[], str], goes_on: Callable[[], str], debug: bool = False) -> Iterator[None]:
    """Whatever ends the block by an exception ends the process: by one line on stderr and an exit status.

    SIGINT, SIGTERM and SIGHUP are exceptions in the block, too; a second one ends the process at once.

    Args:
        name: The command as it begins the line.
        goes_on: How to go on after an interrupt.
        debug: Leave exceptions as they are.

    Raises:
        SystemExit: In the place of any exception, with the status of `explain`; 141 where nobody reads stdout.
    """
    rank = os.environ.get("RANK", "0")
    prog = name if rank == "0" else lambda: f"{name()} (process {rank})"
    signals = _Signals(lambda number: f"{prog()}: ended by {number.name}; {goes_on()}" if rank == "0" else "")
    try:
        with signals:
            yield
    except SystemExit:
        raise
    except BaseException as error:
        if debug:
            raise
        if signals.received is not None:
            signals.speak()
            raise SystemExit(128 + signals.received) from None
        if isinstance(error, BrokenPipeError):
            _leave_stdout()
            raise SystemExit(128 + signal.SIGPIPE) from None
        status, line = explain(error)
        line = f"{prog()}: error: {line}{_report(error) if status == BUG else ''}"
        say(line)
        _tell_launcher(line)
        _leave_stdout()
        raise SystemExit(status) from None


class _Signals:
    """SIGINT, SIGTERM and SIGHUP as exceptions, as long as this context lasts; where they are ignored, they stay so.

    Args:
        line: What to say of a signal; nothing if empty.
    """

    def __init__(self, line: Callable[[signal.Signals], str]) -> None:
        self.line = line
        self.received: signal.Signals | None = None
        """The first of them; whatever exception comes later is a consequence."""
        self.spoken = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> None:
        with contextlib.suppress(ValueError):  # not the main thread, which alone hears of signals
            for number in _ENDING:
                if (before := signal.getsignal(number)) not in (signal.SIG_IGN, None):
                    signal.signal(number, self._receive)
                    self._before[number] = before

    def __exit__(self, *_: object) -> None:
        if self.received is None:
            for number, before in self._before.items():
                signal.signal(number, before)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            self.speak()
            os._exit(128 + self.received)
        self.received = signal.Signals(number)
        raise Interrupted(number)

    def speak(self) -> None:
        """Say the line, once."""
        if not self.spoken and self.received is not None:
            self.spoken = True
            if line := self.line(self.received):
                say(line)


def _leave_stdout() -> None:
    """Let what could not be written be forgotten: else the interpreter tries again at its end, and complains."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        sys.stdout.flush()
        return
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.__stdout__.fileno())  # type: ignore[union-attr]


def _tell_launcher(line: str) -> None:
    """Let torchrun and accelerate launch show the line as the cause in their own report of a process that failed."""
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if path:
        facts = {"message": line, "extraInfo": {"py_callstack": line, "timestamp": str(int(time.time()))}}
        with contextlib.suppress(OSError):
            Path(path).write_text(json.dumps({"message": facts}))


def _report(error: BaseException) -> str:
    """Write the traceback to a file; what to do with it."""
    versions = [f"ardistill {version()}", f"python {platform.python_version()}", platform.platform()]
    versions += [f"{x} {sys.modules[x].__version__}" for x in ("torch", "diffusers", "accelerate") if x in sys.modules]
    text = "\n".join([*versions, shlex.join(sys.argv), "", "".join(traceback.format_exception(error))])
    try:
        handle, path = tempfile.mkstemp(prefix="ardistill-bug-", suffix=".txt")
        with open(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
    except OSError:
        return "; please report it with what --debug shows"
    return f"; please report it with {path}, which holds the traceback"
