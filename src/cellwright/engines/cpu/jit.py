"""Compiles LLVM IR to machine code and keeps the result, in memory and on disk."""

from __future__ import annotations

import hashlib
import os
import tempfile
import threading
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import llvmlite
import llvmlite.binding as llvm

from cellwright.errors import EngineError

AVX2 = "avx2"
_LIMITS = ("", AVX2)


@dataclass(frozen=True)
class Target:
    """The processor that code is made for.

    Attributes:
        cpu, features: as LLVM names them.
        registers: vector registers that a product may fill with its sums.
        width: bytes of a vector register.
        bf16: whether there are dot products of bfloat16 numbers.
    """

    cpu: str
    features: str
    registers: int
    width: int
    bf16: bool


@lru_cache(maxsize=1)
def _initialise() -> None:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()


def features_limit() -> str:
    """The limit that the environment variable ``CELLWRIGHT_CPU_FEATURES`` sets: "" or "avx2"."""
    limit = os.environ.get("CELLWRIGHT_CPU_FEATURES", "")
    if limit not in _LIMITS:
        raise EngineError(f"CELLWRIGHT_CPU_FEATURES: expected nothing or 'avx2', got {limit!r}")
    return limit


@lru_cache(maxsize=4)
def target(limit: str = "") -> Target:
    """This machine's processor, or as much of it as ``limit`` allows."""
    _initialise()
    found = llvm.get_host_cpu_features()
    wide = bool(found.get("avx512f")) and bool(found.get("avx512vl")) and limit != AVX2
    if limit == AVX2:
        for name in found:
            if name.startswith("avx512") or name in ("avxvnni", "evex512"):
                found[name] = False
    if not wide:
        found["prefer-256-bit"] = True
    else:
        found["prefer-256-bit"] = False
    return Target(
        cpu=llvm.get_host_cpu_name(),
        features=found.flatten(),
        registers=24 if wide else 12,
        width=64 if wide else 32,
        bf16=wide and bool(found.get("avx512bf16")),
    )


def machine(wanted: Target) -> llvm.TargetMachine:
    """LLVM's code generator for a target."""
    _initialise()
    triple = llvm.Target.from_triple(llvm.get_process_triple())
    return triple.create_target_machine(
        cpu=wanted.cpu, features=wanted.features, opt=3, reloc="pic", codemodel="default"
    )


class Code:
    """Machine code in memory; it stays as long as the object does."""

    def __init__(self, binary: bytes, wanted: Target):
        self._engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine(wanted))
        self._engine.add_object_file(llvm.ObjectFileRef.from_data(binary))
        self._engine.finalize_object()

    def address(self, name: str) -> int:
        """Where a function begins."""
        found = self._engine.get_function_address(name)
        if not found:
            raise EngineError(f"compiled code has no function {name}: a defect of cellwright")
        return int(found)


_memory: dict[str, Code] = {}
_lock = threading.RLock()
_warned = False


def _key(ir: str, wanted: Target) -> str:
    versions = f"{llvmlite.__version__} {llvm.llvm_version_info} cellwright-1"
    content = "\0".join((versions, wanted.cpu, wanted.features, ir))
    return hashlib.sha256(content.encode()).hexdigest()


def optimise(ir: str, wanted: Target) -> tuple[llvm.ModuleRef, llvm.TargetMachine]:
    """The verified module after LLVM's passes, and the code generator to use with it."""
    generator = machine(wanted)
    module = llvm.parse_assembly(ir)
    module.verify()
    options = llvm.create_pipeline_tuning_options(speed_level=2)
    options.loop_vectorization = False  # vectors are written by the emitter
    options.slp_vectorization = False
    options.loop_unrolling = False
    builder = llvm.create_pass_builder(generator, options)
    builder.getModulePassManager().run(module, builder)
    return module, generator


def compile_ir(ir: str, limit: str | None = None) -> Code:
    """Machine code for a module; taken from memory or disk where it was compiled before."""
    wanted = target(features_limit() if limit is None else limit)
    key = _key(ir, wanted)
    with _lock:
        code = _memory.get(key)
        if code is None:
            binary = _read(key)
            if binary is None:
                module, generator = optimise(ir, wanted)
                binary = generator.emit_object(module)
                _write(key, binary)
            code = _memory[key] = Code(binary, wanted)
        return code


def assembly(ir: str, limit: str | None = None) -> str:
    """The module as assembler, for people to read."""
    wanted = target(features_limit() if limit is None else limit)
    module, generator = optimise(ir, wanted)
    return str(generator.emit_assembly(module))


def cache_folder() -> Path | None:
    """Where compiled code is kept: ``CELLWRIGHT_CACHE``, else the user's cache folder."""
    chosen = os.environ.get("CELLWRIGHT_CACHE")
    if chosen == "":
        return None
    if chosen:
        return Path(chosen) / "kernels"
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(home) / "cellwright" / "kernels"


def _warn(problem: str) -> None:
    global _warned
    if not _warned:
        _warned = True
        warnings.warn(f"compiled kernels are not kept on disk: {problem}", stacklevel=2)


_MAGIC = b"cellwright kernel 1\n"


def _read(key: str) -> bytes | None:
    """The object file kept under ``key``; None if there is none that is whole."""
    folder = cache_folder()
    if folder is None:
        return None
    try:
        content = (folder / key).read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        _warn(f"{folder} cannot be read ({error.strerror})")
        return None
    checksum, body = content[len(_MAGIC) : len(_MAGIC) + 32], content[len(_MAGIC) + 32 :]
    if not content.startswith(_MAGIC) or hashlib.sha256(body).digest() != checksum:
        _warn(f"{folder / key} is damaged and was made again")
        return None
    return body


def _write(key: str, binary: bytes) -> None:
    folder = cache_folder()
    if folder is None:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, delete=False) as file:
            try:
                file.write(_MAGIC + hashlib.sha256(binary).digest() + binary)
                file.flush()
                os.replace(file.name, folder / key)
            except BaseException:
                Path(file.name).unlink(missing_ok=True)
                raise
    except OSError as error:
        _warn(f"{folder} cannot be written ({error.strerror})")


def bind_symbols(addresses: Mapping[str, int]) -> None:
    """Let compiled code call functions by name."""
    for name, address in addresses.items():
        llvm.add_symbol(name, address)
