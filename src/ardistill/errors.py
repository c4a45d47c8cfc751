"""Turns exceptions into what a user reads: one line with a remedy, and an exit status.

Only the standard library is imported; exception classes of other packages are recognised by their names.
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
"""Exit status of an error that only a fault in ardistill can cause."""
USAGE = 2
"""Exit status of an error that a user, a disk, a network, a lack of memory or a missing package caused."""
SAME_COMMAND = "files written so far are whole, the same command again goes on"
"""Remedy for an error after which a command can be resumed."""

_LONGEST = 900
"""Characters of the longest message."""
_warned: set[str] = set()
"""Warnings that were printed."""
_ENDING = tuple(getattr(signal, x) for x in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, x))
"""Signals that ask a process to end."""
_MEMORY = (
    "lower the batch size (--training.batch_size; --batch_size of record), or train with "
    "--training.gradient_checkpointing true or --lora_rank 16"
)
_DISK = {
    (errno.ENOSPC, errno.EDQUOT, errno.EFBIG): f"free space there, or name another folder; {SAME_COMMAND}",
    (errno.EACCES, errno.EPERM, errno.EROFS): "name a folder that you may read and write, or change its permissions",
    (errno.ENOENT,): "check the path",
    (errno.EISDIR,): "this is a folder: name a file",
    (errno.ENOTDIR,): "a parent of this path is a file: name another path",
    (errno.ENAMETOOLONG, errno.ELOOP): "name a shorter path",
    (errno.EEXIST, errno.ENOTEMPTY, errno.EBUSY, errno.EXDEV): "name a new folder",
    (errno.EMFILE, errno.ENFILE): "allow more open files: ulimit -n 65536",
    (errno.EADDRINUSE,): "another launch uses this port: accelerate launch --main_process_port 0 takes a free one",
    (errno.EIO, errno.ESTALE, errno.ENODEV, errno.ENXIO): f"check the disk; {SAME_COMMAND}",
}
"""Remedies by error numbers of the operating system."""
_HUB = {
    "GatedRepoError": "accept the terms on its page at huggingface.co, then log in with: hf auth login",
    "RepositoryNotFoundError": "check the id; if it is private, log in with: hf auth login",
    "RevisionNotFoundError": "check the revision",
    "HFValidationError": "name a folder that exists or a Hub id such as facebook/DiT-XL-2-256",
    "OfflineModeIsEnabled": "unset HF_HUB_OFFLINE, or name a local folder",
    "LocalEntryNotFoundError": "unset HF_HUB_OFFLINE and check the network, or name a local folder",
    "EntryNotFoundError": "check the id: the repository lacks a required file",
}
"""Remedies by exception classes of huggingface_hub, subclasses before their bases."""
_NETWORK = {
    "requests", "httpx", "httpx2", "httpcore", "urllib3", "urllib", "aiohttp", "socket", "ssl", "botocore",
    "aiobotocore", "s3fs", "gcsfs", "google", "adlfs", "azure", "huggingface_hub",
}  # fmt: skip
"""Packages whose exceptions are network errors."""
_NO_NETWORK = f"check the network, the address and your credentials; {SAME_COMMAND}"
_RUNTIME = {
    r"out of memory|can't allocate memory|cannot allocate memory|not enough memory": _MEMORY,
    r"backend='inductor'|InductorError|C(\+\+)? compiler|recompile_limit": (
        "the blocks cannot be compiled here: leave them as they are, --training.compile false (record: --compile false)"
    ),
    r"DataLoader worker .* (killed|exited)": "use fewer workers, or a machine with more memory or a larger /dev/shm",
    r"PytorchStreamWriter|unexpected pos \d+|Parent directory .* does not exist|cannot be opened": (
        f"free space there, or name a folder that you may write; {SAME_COMMAND}"
    ),
    r"PytorchStreamReader|central directory|[Ii]nvalid magic number|header is too (large|small)|"
    r"deserializing (the )?header|corrupted": "the file is truncated or damaged: download or write it again",
    r"unable to mmap|unable to open file": "check the path and the limits of memory (ulimit -v)",
    r"EADDRINUSE|address already in use": _DISK[errno.EADDRINUSE,],
    r"[Cc]onnection (was )?(closed|reset|refused)|[Tt]imed? ?out|NCCL|[Gg]loo|DistStore|Broken pipe": (
        f"another process of this launch ended or cannot be reached, look for its error line; {SAME_COMMAND}"
    ),
    r"Storage size calculation overflowed": "a requested size is too large: take a smaller one",
    r"no kernel image|driver|Torch not compiled with|CUDA-capable|busy or unavailable|device-side|uncorrectable": (
        "check that torch, driver and device are compatible (python -m torch.utils.collect_env), or use --device cpu"
    ),
    r"not implemented for|Could not run 'aten|not (currently )?(implemented|supported) (for|on)": (
        "this device or dtype lacks an operation that the model needs: use another dtype, or --device cpu"
    ),
}
"""Remedies by patterns in messages of torch's RuntimeErrors that a fault in ardistill does not cause."""
_EXTRAS = {"torch_fidelity": "fid", "peft": "lora", "gradio": "demo", "s3fs": "s3"} | dict.fromkeys(
    ("transformers", "datasets", "sentencepiece", "jinja2", "tokenizers"), "text"
)
"""Importable packages and the extra of ardistill that installs them."""
_ON_PYPI = {"PIL": "pillow", "yaml": "pyyaml", "google": "protobuf", "cv2": "opencv-python"}
"""Importable packages and their names on PyPI, where these differ."""


class Interrupted(KeyboardInterrupt):
    """Raised when SIGINT, SIGTERM or SIGHUP asks this process to end; ``args[0]`` is the signal's number."""


def version(package: str = "ardistill") -> str:
    """The installed version of a package, or ``(not installed)``."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "(not installed)"


def explain(error: BaseException) -> tuple[int, str]:
    """Find the exit status and the line for an exception, or for the exception that it was raised from.

    Returns:
        The exit status and one line. The status is 130, 143 or 129 for an interrupt; `USAGE` for an error that a user,
        a disk, a network, a lack of memory or a missing package caused, with a remedy in the line; `BUG` otherwise.
    """
    cause: BaseException | None = error
    while cause is not None:
        if (found := _known(cause)) is not None:
            return found[0], _shorten(found[1])
        cause = cause.__cause__
    text = _shorten(f"{type(error).__name__}: {_flat(error)}")
    return BUG, f"{text} (this is a bug in ardistill {version()})"


def _known(error: BaseException) -> tuple[int, str] | None:
    """Exit status and line of an exception; None if only a bug explains it."""
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
        return USAGE, _explain_os_error(error)
    elif found := re.search(r"os error (\d+)\)|code: (\d+)", text):  # safetensors, written in Rust
        remedy = _disk_remedy(int(found[1] or found[2]))
    elif (
        isinstance(error, (RuntimeError, AssertionError)) and "ValueError" not in names
    ) or "SafetensorError" in names:
        remedy = next((advice for said, advice in _RUNTIME.items() if re.search(said, text)), None)
        if remedy is None and "SafetensorError" in names:
            remedy = "the file is truncated or damaged: download or write it again"
    elif names & {"JSONDecodeError", "UnicodeDecodeError", "YAMLError", "UnpicklingError", "BadZipFile", "EOFError"}:
        text, remedy = f"a file cannot be read: {text}", "write or download it again; --debug shows which file"
    elif isinstance(error, ValueError) or type(error) is Exception:  # ardistill itself raises no bare Exception
        return USAGE, text
    elif packages & {"fsspec", "pyarrow", "datasets", "PIL"}:
        remedy = "check the path or the file"
    return None if remedy is None else (USAGE, f"{text}; {remedy}")


def _explain_os_error(error: OSError) -> str:
    """The line for an OSError; one without an error number comes from a package and has its own message."""
    if error.errno is None:  # raised by a package, perhaps because of an error of the Hub
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
    return next((advice for numbers, advice in _DISK.items() if number in numbers), f"resolve this; {SAME_COMMAND}")


def cache_variable(error: BaseException) -> str | None:
    """The environment variable that locates the cache that an error is about; None if it is not about a cache."""
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
    """Exit status and line that says what to install; None if the import of a module of ardistill failed."""
    text = _flat(error)
    if "pip install" in text:
        return USAGE, text
    name = (error.name or "").partition(".")[0]
    if name == "ardistill":
        return None
    if isinstance(error, metadata.PackageNotFoundError) or not name:
        return USAGE, f"{text}; install the named package with pip"
    if name == "torchvision":
        return USAGE, f"{text}; pip install torchvision, in the build made for your torch (https://pytorch.org)"
    if name in _EXTRAS:
        return USAGE, f"{text}; pip install 'ardistill[{_EXTRAS[name]}]'"
    upgrade = "" if isinstance(error, ModuleNotFoundError) else "-U "
    return USAGE, f"{text}; pip install {upgrade}{_ON_PYPI.get(name, name)}"


def _flat(error: BaseException) -> str:
    """The message of an exception in one line without colour codes; the class's name if there is no message."""
    return " ".join(re.sub(r"\x1b\[[\d;]*m", "", str(error)).split()) or type(error).__name__


def _shorten(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST // 2]} ... {text[-_LONGEST // 2 :]}"


def ready_process() -> None:
    """Prepare stdout, stderr and warnings for a command.

    Characters that a stream's encoding lacks are escaped, a closed stream discards its text, and each warning is
    printed once, as one line.
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
    """Write one line to stderr, below progress bars that are on the terminal."""
    bars = getattr(getattr(sys.modules.get("tqdm"), "tqdm", None), "_instances", ())
    with contextlib.suppress(OSError, ValueError, RuntimeError):
        for bar in list(bars):
            bar.close()
    with contextlib.suppress(OSError, ValueError):
        print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def one_line(name: Callable[[], str], goes_on: Callable[[], str], debug: bool = False) -> Iterator[None]:
    """Context in which an exception ends the process with one line on stderr and an exit status.

    SIGINT, SIGTERM and SIGHUP raise `Interrupted` in this context; a second signal ends the process at once.

    Args:
        name: Returns the command's name, with which the line begins.
        goes_on: Returns how to go on after an interrupt.
        debug: Do not change exceptions.

    Raises:
        SystemExit: In place of any exception, with the status of `explain`, or 141 if the reader of stdout is gone.
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
    """Context in which SIGINT, SIGTERM and SIGHUP raise `Interrupted`; ignored signals stay ignored.

    Args:
        line: Returns the line to print for a signal; nothing is printed if it is empty.
    """

    def __init__(self, line: Callable[[signal.Signals], str]) -> None:
        self.line = line
        self.received: signal.Signals | None = None
        """The first signal; exceptions after it are taken as its consequence."""
        self.spoken = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> None:
        _RUNNING.append(self)
        with contextlib.suppress(ValueError):  # raised outside the main thread, which alone receives signals
            for number in _ENDING:
                if (before := signal.getsignal(number)) not in (signal.SIG_IGN, None):
                    signal.signal(number, self._receive)
                    self._before[number] = before

    def __exit__(self, *_: object) -> None:
        _RUNNING.remove(self)
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
        """Print the line once."""
        if not self.spoken and self.received is not None:
            self.spoken = True
            if line := self.line(self.received):
                say(line)


_RUNNING: list[_Signals] = []


def heed_signals() -> None:
    """Raise `Interrupted` again after a signal whose exception was lost, as Python loses those in a ``__del__``."""
    for signals in _RUNNING:
        if signals.received is not None:
            raise Interrupted(signals.received)


def _leave_stdout() -> None:
    """Discard unwritable text of stdout; otherwise the interpreter tries again when it exits, and complains."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        sys.stdout.flush()
        return
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.__stdout__.fileno())  # type: ignore[union-attr]


def _tell_launcher(line: str) -> None:
    """Give the line to torchrun and accelerate launch, which show it in their report of the failed process."""
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if path:
        facts = {"message": line, "extraInfo": {"py_callstack": line, "timestamp": str(int(time.time()))}}
        with contextlib.suppress(OSError):
            Path(path).write_text(json.dumps({"message": facts}))


def _report(error: BaseException) -> str:
    """Write the traceback to a file; the end of the error line asks to report it."""
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
