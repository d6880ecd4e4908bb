#!/usr/bin/env bash
# Makes the virtual environment that `make demo` and `make test` use.
# usage: make_env.sh PYTHON FOLDER
# If PYTHON already imports Detectron2, its installation is used as it is: the environment then sees
# PYTHON's packages and gets only what they lack. Otherwise everything is installed at the versions
# of requirements/, which exist for Python 3.11 and 3.12.
set -euo pipefail
python=$1 folder=$2
cd "$(dirname "$0")/.."
make_venv() {
  "$folder/bin/python" -m pip --version >/dev/null 2>&1 && return
  "$python" -m venv --clear "$folder" || {
    echo "error: $python cannot make virtual environments: on Debian, apt-get install python3-venv" >&2
    exit 1
  }
}
if "$python" -W ignore -c 'import detectron2' 2>/dev/null; then
  echo "$python has Detectron2: it is used as it is"
  make_venv
  purelib=$("$folder/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
  # a path file rather than --system-site-packages, which passes over PYTHON's own virtual environment
  "$python" -c 'import site; print(*site.getsitepackages(), sep="\n")' >"$purelib/of_python.pth"
  "$folder/bin/python" -m pip --disable-pip-version-check install --quiet --no-build-isolation \
    --editable '.[detectron2,dev]'
else
  "$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' || {
    echo "error: $python is not Python 3.11 or 3.12: make PYTHON=python3.11 ..." >&2
    exit 1
  }
  make_venv
  pip=("$folder/bin/python" -m pip --disable-pip-version-check install --quiet)
  echo "installing into $folder (torch alone is several GB; minutes on a fast line)"
  "${pip[@]}" --constraint requirements/constraints.txt setuptools wheel
  "${pip[@]}" --constraint requirements/constraints.txt --no-build-isolation --editable '.[detectron2,dev]'
  purelib=$("$folder/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
  "$folder/bin/python" -W ignore -c 'import detectron2' 2>/dev/null ||
    "${pip[@]}" --require-hashes --no-deps --only-binary=:all: --python-version 3.10 \
      --target "$purelib" --requirement requirements/detectron2.txt
fi
"$folder/bin/python" -W ignore -m groupdetr_d2 env
