# For ./demo and ./check: an environment, made once, with what is asked for. POSIX sh; sourced with $root set.
# DIFFUSAM_VENV names another place for it than .venv.

environment=${DIFFUSAM_VENV:-$root/.venv}

# set_up EXTRA pip install ...: sets $python to the environment's interpreter. EXTRA names what the mark of a finished
# installation says beside pyproject.toml; while both are as they were, nothing is installed.
set_up() {
    extra=$1
    shift
    python=$environment/bin/python
    if [ ! -x "$python" ]; then
        found=$(find_python)
        if [ -e "$environment" ]; then
            echo "error: '$environment' is there, but is no environment. Remove it, or set DIFFUSAM_VENV to another folder." >&2
            exit 1
        fi
        echo "Making $environment with $found ..." >&2
        if ! "$found" -m venv "$environment" >&2; then
            rm -rf "$environment"
            echo "error: $found cannot make an environment. Install its venv, on Debian and Ubuntu: apt install python3-venv." >&2
            exit 1
        fi
    fi
    mark=$environment/installed
    wanted=$(printf '%s\n%s' "$root" "$(cat "$root/pyproject.toml")")
    # what ./check needs is enough for ./demo
    for each in "$mark$extra" "$mark[dev]"; do
        if [ -f "$each" ] && [ "$(cat "$each")" = "$wanted" ]; then
            return 0
        fi
    done
    echo "Installing, once: 2.5 GB, or 8 GB where PyTorch comes with CUDA; a few minutes ..." >&2
    shift
    if ! (cd "$root" && "$python" -m pip --quiet --disable-pip-version-check "$@" >&2); then
        echo "error: the installation failed, see above. Given again, the same command goes on." >&2
        exit 1
    fi
    printf '%s\n' "$wanted" > "$mark$extra"
}

# The first interpreter that is new enough for the project's `requires-python`.
find_python() {
    least=$(sed -n 's/^requires-python = ">=3\.\([0-9]*\)".*/\1/p' "$root/pyproject.toml")
    for candidate in python3 python3.14 python3.13 python3.12 python3.11 python3.10 python; do
        if "$candidate" -c "import sys; sys.exit(sys.version_info < (3, $least))" 2>/dev/null; then
            echo "$candidate"
            return 0
        fi
    done
    echo "error: no Python 3.$least or newer is on the path. Install one, then give the same command again." >&2
    exit 1
}
