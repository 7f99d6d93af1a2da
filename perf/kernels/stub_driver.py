"""A CUDA driver that does nothing, so that Triton's own binder, compiler and launcher run without a GPU.

Every call of the library that is built here succeeds. Triton takes it for a GPU of compute capability 9.0,
compiles kernels for it and "launches" them on CPU tensors: its launcher reads every argument and pointer and
calls ``cuLaunchKernelEx``, which returns. Nothing is computed. The host does everything else that it does for
a launch: signatures, cache keys, the launch itself.

It needs a C compiler (`CC`, or gcc), as Triton itself does before version 3.7.
"""

import atexit
import ctypes
import functools
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

_SOURCE = r"""
typedef unsigned long long address;
static long launches = 0;
int cuDriverGetVersion(int *v) {*v = 13000; return 0;}
int cuDeviceGet(int *d, int ordinal) {*d = ordinal; return 0;}
int cuDeviceGetAttribute(int *v, int attribute, int d) {  /* those of an H100, as far as Triton uses them */
  switch (attribute) {
    case 1: *v = 1024; break;  /* threads of a block */
    case 10: *v = 32; break;  /* lanes of a warp */
    case 12: *v = 65536; break;  /* registers of a block */
    case 16: *v = 132; break;  /* multiprocessors */
    case 97: *v = 232448; break;  /* largest shared memory of a block, in bytes */
    default: *v = 49152;}
  return 0;}
int cuCtxGetDevice(int *d) {*d = 0; return 0;}
int cuCtxGetCurrent(void **c) {*c = (void *)1; return 0;}
int cuCtxGetLimit(unsigned long *v, int limit) {*v = 0; return 0;}
int cuDevicePrimaryCtxRetain(void **c, int d) {*c = (void *)1; return 0;}
int cuFuncGetAttribute(int *v, int attribute, void *f) {*v = attribute ? 0 : 1024; return 0;}
int cuModuleGetFunction(void **f, void *m, const char *n) {*f = (void *)1; return 0;}
int cuModuleLoadData(void **m, const void *i) {*m = (void *)1; return 0;}
int cuPointerGetAttribute(address *v, int attribute, address p) {*v = p; return 0;}
static address last[33];
static int watched = 3;
int cuLaunchKernelEx(void *config, void *f, void **arguments, void **e) {
  last[0] = *(address *)((char *)config + 32);
  for (int i = 0; i < watched; i++)
    last[i + 1] = i < 3 ? *(address *)arguments[i] : (address)*(int *)arguments[i];
  __atomic_fetch_add(&launches, 1, __ATOMIC_RELAXED);
  return 0;}
long stub_launches(void) {return launches;}
void stub_watch(int n) {watched = n;}
address stub_last(int i) {return last[i];}
"""


@functools.cache
def install() -> ctypes.CDLL:
    """Make it Triton's driver in this process, for good.

    Returns:
        The library. ``stub_launches()`` counts launches. ``stub_last(0)`` is the stream of the last one, and
        ``stub_last(1)`` to ``stub_last(3)`` are its first arguments, pointers. After ``stub_watch(n)``, n at
        most 32, the arguments up to ``stub_last(n)`` follow; they must be numbers of 32 bits.

    Raises:
        OSError: there is no C compiler.
        subprocess.CalledProcessError: it does not compile.
    """
    from triton.backends.nvidia import driver as nvidia
    from triton.runtime.driver import driver

    # All other functions that this version of Triton may call return 0.
    text = "".join(path.read_text() for path in Path(nvidia.__file__).parent.glob("driver.*"))
    others = set(re.findall(r"\bcu[A-Z]\w+", text)) - set(re.findall(r"\bcu[A-Z]\w+", _SOURCE))
    folder = Path(tempfile.mkdtemp(prefix="stn_triton_stub_"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    source, library = folder / "stub.c", folder / "libcuda.so.1"
    source.write_text(_SOURCE + "".join(f"int {name}(void) {{return 0;}}\n" for name in sorted(others)))
    flags = ["-O2", "-shared", "-fPIC", "-w", "-Wl,-soname,libcuda.so.1"]
    command = [os.environ.get("CC", "gcc"), *flags, "-o", library, source]
    subprocess.run(command, check=True, capture_output=True, text=True)
    os.environ["TRITON_LIBCUDA_PATH"] = str(folder)
    stub = ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)  # a later search for libcuda.so.1 finds this one
    stub.stub_launches.restype = ctypes.c_long
    stub.stub_last.restype = ctypes.c_ulonglong
    active = nvidia.CudaDriver()
    active.get_current_device = lambda: 0
    active.get_current_stream = lambda device: 0
    active.get_device_capability = lambda device=0: (9, 0)
    driver.set_active(active)
    return stub
