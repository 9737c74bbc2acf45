#!/usr/bin/env bash
# Finds or installs what a build needs: cargo, a C compiler and LLVM 22.
#
#   scripts/setup.sh            checks, installs LLVM by apt where it is missing (Debian, Ubuntu)
#   . scripts/setup.sh          the same, and exports LLVM_SYS_221_PREFIX to the calling shell
#
# LLVM is looked for in LLVM_SYS_221_PREFIX, then in the directory where Debian's packages put it. Nothing is
# downloaded when it is found.

flashomni_setup() {
    local prefix=/usr/lib/llvm-22
    local tool missing=()
    for tool in cargo cc make; do
        command -v "$tool" >/dev/null 2>&1 || missing+=("$tool")
    done
    if [ "${#missing[@]}" -gt 0 ]; then
        echo "setup: missing: ${missing[*]}" >&2
        case " ${missing[*]} " in
            *" cargo "*) echo "setup: install Rust 1.88 or newer, with rustup (see rustup.rs) or your system's packages" >&2 ;;
        esac
        case " ${missing[*]} " in
            *" cc "* | *" make "*) echo "setup: install a C compiler and make; on Debian and Ubuntu: apt-get install build-essential" >&2 ;;
        esac
        return 2
    fi

    if [ -n "${LLVM_SYS_221_PREFIX:-}" ]; then
        flashomni_is_llvm_22 "$LLVM_SYS_221_PREFIX" && return 0
        echo "setup: LLVM_SYS_221_PREFIX=$LLVM_SYS_221_PREFIX has no bin/llvm-config of LLVM 22" >&2
        flashomni_explain
        return 2
    fi
    if ! flashomni_has_packages "$prefix"; then
        flashomni_install "$prefix" || { flashomni_explain; return 2; }
    fi
    export LLVM_SYS_221_PREFIX=$prefix
}

flashomni_is_llvm_22() {
    case "$("$1/bin/llvm-config" --version 2>/dev/null)" in
        22.*) return 0 ;;
        *) return 1 ;;
    esac
}

# LLVM and the libraries that it is linked with. Polly's files are only asked for by static linking, but
# Debian packages them apart and llvm-sys names them.
flashomni_has_packages() {
    local header
    flashomni_is_llvm_22 "$1" && [ -e "$1/lib/libPolly.a" ] || return 1
    for header in zlib.h zstd.h ffi.h; do
        # Some headers lie in the directory of the architecture.
        compgen -G "/usr/include/$header" >/dev/null || compgen -G "/usr/include/*/$header" >/dev/null || return 1
    done
}

flashomni_install() {
    local root=()
    if ! command -v apt-get >/dev/null 2>&1; then
        echo "setup: LLVM 22 was not found, and there is no apt-get to install it with" >&2
        return 1
    fi
    if [ "$(id -u)" -ne 0 ]; then
        if ! command -v sudo >/dev/null 2>&1; then
            echo "setup: LLVM 22 was not found, and installing it needs root or sudo" >&2
            return 1
        fi
        root=(sudo)
    fi
    echo "setup: installing LLVM 22 with apt" >&2
    "${root[@]}" apt-get update -qq >&2 || echo "setup: apt-get update failed; trying with the lists that are there" >&2
    "${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
        llvm-22-dev libpolly-22-dev zlib1g-dev libzstd-dev libffi-dev >&2 || {
        echo "setup: apt could not install LLVM 22" >&2
        return 1
    }
    flashomni_has_packages "$1" || {
        echo "setup: the packages are installed, but $1 is not complete" >&2
        return 1
    }
}

flashomni_explain() {
    cat >&2 <<'END'
setup: three ways on:
  1. LLVM's own packages for Debian and Ubuntu: add the repository described at apt.llvm.org, then
         apt-get install llvm-22-dev libpolly-22-dev zlib1g-dev libzstd-dev libffi-dev
  2. an LLVM 22 that is somewhere else (it needs bin/llvm-config, headers and libraries):
         export LLVM_SYS_221_PREFIX=/path/to/llvm-22
  3. without LLVM; data-dependent rules are then interpreted, slower and with the same result:
         cargo build --no-default-features
END
}

if [ "${BASH_SOURCE[0]}" = "$0" ]; then
    set -euo pipefail
    flashomni_setup
    echo "setup: LLVM 22 in $LLVM_SYS_221_PREFIX"
else
    flashomni_setup
fi
