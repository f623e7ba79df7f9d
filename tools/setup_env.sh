#!/usr/bin/env bash
# Makes .venv and installs the project's dependencies into it, in the versions of constraints.txt. With --latest it makes
# .venv again with the newest versions that pyproject.toml allows; with --floor it makes .venv-floor, which differs from
# .venv in having the oldest torch and torchvision that pyproject.toml allows. Run by `make env`, `make env-latest` and
# `make test-floor`; safe to run again.
#
# Required: PyTorch and everything else that pyproject.toml names. Optional: DALI (x86_64 and aarch64 Linux) and FFCV
# (needs system headers); if one cannot be installed, a line says why and the set-up continues without it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=${PYTHON:-python3}
venv=.venv
ffcv_version=1.0.2
azurite_version=3.37.0
log=build/env.log # output of apt-get and of the optional installs
mkdir -p build
case ${1:-} in
--latest) versions=() ;;
--floor)
    venv=.venv-floor versions=(--constraint build/floor.txt)
    # What torch itself pins, CUDA's libraries and Triton, follows from its version.
    grep -vE '^(torch|torchvision|triton|nvidia-[^d]|cuda-)' constraints.txt >build/floor.txt
    sed -nE 's/^ *"(torch|torchvision)>=([0-9.]+)".*/\1==\2/p' pyproject.toml >>build/floor.txt
    ;;
*) versions=(--constraint constraints.txt) ;;
esac
venv_python=$venv/bin/python

step() { echo "[env +${SECONDS}s] $*"; }
note() { echo "[env] $*" >&2; }
die() {
    note "$*"
    exit 2
}

# Compiling every module takes 34 of 117 s on 2 cores; the few in use are compiled on first import (6 s, once).
pip_install() { "$venv_python" -m pip install -qq --disable-pip-version-check --no-compile "$@"; }

as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi; }

# The command a user would type to install Debian packages.
apt_hint() { if [ "$(id -u)" = 0 ]; then echo "apt-get install $*"; else echo "sudo apt-get install $*"; fi; }

# Installs Debian packages; refreshes the package lists only if the first attempt fails. Fails without apt-get,
# permission to use it, or a network.
apt_install() {
    local apt=(env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=120)
    command -v apt-get && as_root true || return 1
    as_root "${apt[@]}" install --no-install-recommends "$@" ||
        { as_root "${apt[@]}" update && as_root "${apt[@]}" install --no-install-recommends "$@"; }
} >>"$log" 2>&1 </dev/null

# Pip would fail after a minute, without saying how much it needs. Measured: .venv takes 6.6 GB, TMPDIR 2.7 GB for a
# while; pip's cache may take as much.
check_space() {
    local folder needed free
    for folder in "$PWD 10" "$("$python" -c 'import tempfile; print(tempfile.gettempdir())') 3"; do
        needed=${folder##* } folder=${folder% *}
        free=$(df -Pk "$folder" | awk 'END { print int($4 / 1000000) }')
        [ "$free" -ge "$needed" ] || die "$folder has $free GB free; installing needs $needed GB there"
    done
}

make_venv() {
    local version
    command -v "$python" >/dev/null ||
        die "$python not found; Python 3.10 or newer is needed: $(apt_hint python3)"
    version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
        die "$python is Python $version; 3.10 or newer is needed: make env PYTHON=/path/to/python3"
    if ! "$python" -c 'import venv, ensurepip' 2>/dev/null; then # a separate package on Debian
        step "Installing python$version-venv"
        apt_install "python$version-venv" ||
            die "$python cannot make virtual environments; first run: $(apt_hint "python$version-venv")"
    fi
    if [ ${#versions[@]} = 0 ] || ! "$venv_python" -m pip --version >/dev/null 2>&1; then
        check_space
        step "Making $venv with $python ($version)"
        "$python" -m venv --clear "$venv"
    fi
}

# Prints the Debian packages that FFCV's build needs and that are missing.
missing_for_ffcv() {
    local include
    include=$("$venv_python" -c 'import sysconfig; print(sysconfig.get_path("include"))')
    [ -e "$include/Python.h" ] || echo "lib$(basename "$include")-dev"
    [ -e /usr/include/opencv4/opencv2/core.hpp ] || echo libopencv-core-dev
    [ -e /usr/include/opencv4/opencv2/imgproc.hpp ] || echo libopencv-imgproc-dev
    pkg-config --exists libturbojpeg 2>/dev/null || echo libturbojpeg0-dev
    command -v pkg-config >/dev/null || echo pkg-config
    command -v g++ >/dev/null || echo g++
}

ffcv_works() {
    "$venv_python" -c 'import ffcv.loader, importlib.metadata as m; assert m.version("ffcv") == "'$ffcv_version'"'
} >>"$log" 2>&1

# FFCV links every OpenCV module that pkg-config names and includes the headers of all that opencv_modules.hpp
# defines, but uses only core and imgproc. Naming just these two avoids hundreds of Debian packages.
build_ffcv() {
    local overlay=$PWD/build/ffcv
    mkdir -p "$overlay/opencv2"
    printf '#define HAVE_OPENCV_CORE\n#define HAVE_OPENCV_IMGPROC\n' >"$overlay/opencv2/opencv_modules.hpp"
    printf '%s\n' 'Name: opencv4' 'Description: core and imgproc' 'Version: 4' \
        'Libs: -lopencv_core -lopencv_imgproc' >"$overlay/opencv4.pc"
    # No cache: a wheel built before a system upgrade would link to libraries that are gone.
    # No dependencies: they are in pyproject.toml's extra `ffcv`.
    PKG_CONFIG_PATH="$overlay" CPATH="$overlay:/usr/include/opencv4" \
        pip_install --use-pep517 --no-cache-dir --no-deps --force-reinstall "ffcv==$ffcv_version"
} >>"$log" 2>&1

install_ffcv() {
    local missing
    ffcv_works && return
    missing=$(missing_for_ffcv | xargs)
    if [ -n "$missing" ]; then
        step "Installing the packages that FFCV is built with: $missing"
        # shellcheck disable=SC2086
        if ! apt_install $missing; then
            note "Continuing without FFCV. To install it: $(apt_hint "$missing") && make -B env"
            return
        fi
    fi
    step "Building FFCV"
    if ! build_ffcv || ! ffcv_works; then
        "$venv_python" -m pip uninstall --quiet --yes ffcv >>"$log" 2>&1
        note "Continuing without FFCV: it did not build or does not import, see $log"
    fi
}

: >"$log"
make_venv

step "Installing PyTorch and the other dependencies (about 3 GB to download)"
pip_install "${versions[@]}" --editable ".[train,demo,dev,ffcv,integrations,export]"

step "Installing DALI"
pip_install "${versions[@]}" --editable ".[dali]" >>"$log" 2>&1 || note "Continuing without DALI: it did not install, see $log"

step "Installing what \`--log\` knows besides TensorBoard"
pip_install "${versions[@]}" --editable ".[trackio]" wandb >>"$log" 2>&1 &&
    pip_install "${versions[@]}" --no-deps trackio >>"$log" 2>&1 ||
    note "Continuing without W&B or Trackio: they did not install, see $log"

install_ffcv

if command -v npm >/dev/null; then # without it, the tests of Azure's protocol are skipped
    step "Installing Azurite for the tests"
    npm install --silent --no-audit --no-fund --prefix "$venv/azurite" "azurite@$azurite_version" >>"$log" 2>&1 ||
        note "Continuing without Azurite: it did not install, see $log"
fi
step "Ready"
