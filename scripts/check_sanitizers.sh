#!/usr/bin/env bash
# Builds the native kernels with sanitizers, and runs their tests with each instruction set of this machine.
#     scripts/check_sanitizers.sh [address,undefined | thread] [pytest arguments]
# Needs GCC, CMake, and a Python (PYTHON=..., else python3) with nanobind, numpy and pytest. BUILD=DIR keeps the build for the
# next time: compiling takes eight minutes on two cores, the kernels' 1,837 tests two minutes and a half (address,undefined).
# Leaks are not looked for: Python keeps much until it ends.
set -euo pipefail
cd "$(dirname "$0")/.."
sanitize="${1:-address,undefined}"
shift || true
python="${PYTHON:-$(command -v python3)}"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
build="${BUILD:-$work/build}"

CXX=g++ cmake -S . -B "$build" -DPython_EXECUTABLE="$python" -DZOO_SANITIZE="$sanitize" > "$work/cmake.log" || { cat "$work/cmake.log"; exit 1; }
cmake --build "$build" -j "${JOBS:-2}" > "$work/build.log" 2>&1 || { tail -50 "$work/build.log"; exit 1; }
cp -r zoo tests pyproject.toml "$work"
rm -f "$work"/zoo/core/backends/cpu/_native*
cp "$build"/_native* "$work/zoo/core/backends/cpu/"

# the interpreter knows nothing of sanitizers, so their libraries come first; libstdc++ too, for they watch what it throws
library() { g++ -print-file-name="$1"; }
case "$sanitize" in
    *thread*) preload="$(library libtsan.so) $(library libstdc++.so)" ;;
    *) preload="$(library libasan.so) $(library libubsan.so) $(library libstdc++.so)" ;;
esac
# threads: the interpreter's locks and OpenBLAS are not instrumented, so only what the kernels themselves do is judged; forking is tested
export ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 TSAN_OPTIONS=die_after_fork=0:ignore_noninstrumented_modules=1
cd "$work"
# the sanitizers reserve terabytes of addresses, so a test that limits them cannot run
[ $# -gt 0 ] || set -- tests/core/test_*native*.py tests/core/test_pool.py --deselect \
    tests/core/test_pool.py::test_a_task_that_gets_no_memory_raises_and_the_pool_goes_on
# -R: memory where they expect it. --capture=sys: else pytest keeps stderr, and with it what a sanitizer says before it ends the
# process. Undefined behaviour does not end it, so that one run finds all.
code=0
setarch -R env LD_PRELOAD="$preload" PYTHONPATH="$work" "$python" -m pytest -q -rs --capture=sys -p no:cacheprovider "$@" 2> reports || code=$?
cat reports
if grep -qE 'runtime error:|Sanitizer' reports; then code=1; fi
[ "$code" = 0 ] && echo "$sanitize: nothing to report" || echo "$sanitize: failed"
exit "$code"
