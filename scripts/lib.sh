# Sourced by the other scripts, from the repository's root: sets $python to a Python 3.10 or newer.

python=
for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11 python3.10}; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
        python=$candidate
        break
    fi
done
if [ -z "$python" ]; then
    found=$("${PYTHON:-python3}" -c 'import sys; print("Python %d.%d" % sys.version_info[:2])' 2>/dev/null) ||
        found="no Python"
    echo "error: ${PYTHON:-python3} is $found, but pigguf needs Python 3.10 or newer" >&2
    echo "hint: install one (Debian, Ubuntu: apt-get install python3 python3-venv; macOS: brew install python)," \
        "or name an installed one: PYTHON=python3.12 $0" >&2
    exit 1
fi
