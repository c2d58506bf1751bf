# Sourced by the scripts here, from the repository's root: $python becomes a Python 3.10 or newer.

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
    echo "error: ${PYTHON:-python3} is $found, and pigguf needs Python 3.10 or newer" >&2
    echo "hint: install one (Debian, Ubuntu: apt-get install python3 python3-venv; macOS: brew install python)," \
        "or name one you have: PYTHON=python3.12 $0" >&2
    exit 1
fi
