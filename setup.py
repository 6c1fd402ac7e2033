"""How the native modules are compiled; all else about the package is in pyproject.toml.

A file of its own because pyproject.toml can neither say `*.c` nor drop what the
interpreter's own build left in the linker's command line.

Each `rfaas/native/_*.pyx` becomes a module; all are linked with the same C files,
compiled once, and `_verbs` and `_rdma_stream`, where librdmacm's headers are, with
`verbs*.c` and `rdma_*.c` as well.
RFAAS_WERROR=1 makes warnings errors (`make check`).
"""

from __future__ import annotations

import os
import subprocess
import sys
from glob import glob
from pathlib import Path
from typing import Any

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

NATIVE = "rfaas/native"
GENERATED = "build/cython"  # the C that Cython makes: beside the sources it would pass for one
RDMA = {  # modules of their own: nothing else links to libibverbs
    "_verbs": sorted(glob(f"{NATIVE}/verbs*.c")),
    "_rdma_stream": sorted(glob(f"{NATIVE}/rdma_*.c")),
}
RDMA_HEADER = "rdma/rdma_cma.h"
# A program of its own, for containers; built and carried as the modules are, under their suffix.
PROGRAM = "rfaas.native.inside"
PROGRAM_SOURCE = f"{NATIVE}/inside.c"
MODULES = sorted(Path(module).stem for module in glob(f"{NATIVE}/_*.pyx"))
C_SOURCES = sorted(set(glob(f"{NATIVE}/*.c")).difference({PROGRAM_SOURCE}, *RDMA.values()))

# hidden: calls between our own files go through no table, and a symbol of the
# same name in a client's library cannot take one's place.
CFLAGS = ["-O3", "-fno-plt", "-fvisibility=hidden", "-ffunction-sections", "-g1"]
CFLAGS += ["-Wall", "-Wextra", *(["-Werror"] if os.environ.get("RFAAS_WERROR") else [])]
# What Cython makes of a module is large: with -O3 nearly twice as large as with -Os, which serves
# all that does not stand between a call of Python's and the C files (there, -O2 costs 10 ns).
ON_THE_WAY_OF_CALLS = ("_calls", "_window")
LDFLAGS = ["-Wl,--gc-sections"]  # a module carries what it calls of the C files, no more
LIBRARIES = ["dl", "pthread", "rt"]


def has_header(name: str) -> bool:
    """Whether the compiler finds it: the NIC's transport is left out where it does not."""
    compiler = os.environ.get("CC", "cc").split()
    command = [*compiler, "-xc", "-fsyntax-only", "-"]
    return not subprocess.run(
        command, input=f"#include <{name}>\n", text=True, capture_output=True, check=False
    ).returncode


class BuildExtension(build_ext):
    """setuptools' own, less the interpreter's rpath, plus the C files that all modules share."""

    def build_extensions(self) -> None:
        """Compile the C files, then each module."""
        compiler: Any = self.compiler
        # pyenv's Python hands its own library folder to all that is linked for it.
        compiler.linker_so = [
            word for word in compiler.linker_so if not word.startswith(("-L", "-Wl,-rpath"))
        ]
        objects = compiler.compile(C_SOURCES, output_dir=self.build_temp, extra_postargs=CFLAGS)
        for extension in self.extensions:
            if extension.name.startswith("rfaas.native."):
                extension.extra_objects = objects
        super().build_extensions()

    def build_extension(self, ext: Extension) -> None:
        """A module, or the one program: linked with its own main, and to no Python."""
        compiler: Any = self.compiler
        if own := RDMA.get(ext.name.rpartition(".")[2]):
            objects = compiler.compile(own, output_dir=self.build_temp, extra_postargs=CFLAGS)
            ext.extra_objects = ext.extra_objects + objects
        if ext.name != PROGRAM:
            super().build_extension(ext)
            return
        objects = compiler.compile(ext.sources, output_dir=self.build_temp, extra_postargs=CFLAGS)
        target = self.get_ext_fullpath(ext.name)
        os.makedirs(os.path.dirname(target), exist_ok=True)
        compiler.link_executable(
            [*objects, *ext.extra_objects],
            target,
            libraries=LIBRARIES,
            extra_postargs=["-pie", *LDFLAGS, *os.environ.get("LDFLAGS", "").split()],
        )


extensions = [
    Extension(
        f"rfaas.native.{module}",
        sources=[f"{NATIVE}/{module}.pyx"],
        depends=[
            *(C_SOURCES + RDMA.get(module, [])),
            *glob(f"{NATIVE}/*.h"),
            *glob(f"{NATIVE}/*.px[di]"),
        ],
        include_dirs=[NATIVE],
        libraries=[*(["rdmacm", "ibverbs"] if module in RDMA else []), *LIBRARIES],
        extra_compile_args=[*CFLAGS, *([] if module in ON_THE_WAY_OF_CALLS else ["-Os"])],
        extra_link_args=LDFLAGS,
    )
    for module in MODULES
    if module not in RDMA or has_header(RDMA_HEADER)
]
extensions.append(Extension(PROGRAM, sources=[PROGRAM_SOURCE]))
# The library that `rfaas bench` sends to its worker: no Python in it, built as one all the same.
extensions.append(
    Extension(
        "rfaas.bench.peer",
        sources=["rfaas/bench/peer.c"],
        depends=["rfaas/bench/peer.h"],
        extra_compile_args=CFLAGS,
        extra_link_args=LDFLAGS,
    )
)

setup(
    cmdclass={"build_ext": BuildExtension},
    ext_modules=cythonize(
        extensions,
        build_dir=GENERATED,
        # auto_pickle: none of our types can be pickled, and to say so took 2 kB each.
        compiler_directives={"language_level": 3, "auto_pickle": False},
        force="--force" in sys.argv,  # what it made before may quote an older list of sources
        quiet=True,
    ),
)
