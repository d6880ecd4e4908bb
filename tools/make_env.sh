#!/usr/bin/env bash
# Makes the virtual environment that `make demo` and `make test` use.
# usage: make_env.sh PYTHON FOLDER
# If PYTHON already imports Detectron2, its installation is used as it is: the environment then sees
# PYTHON's packages and gets only what they lack. Otherwise everything is installed at the versions
# of requirements/.
set -euo pipefail
python=$1 folder=$2
cd "$(dirname "$0")/.."
"$python" - <<'P' || { echo "error: Python 3.10 or newer is needed, $python is not: make PYTHON=python3.11 ..." >&2; exit 1; }
import sys
sys.exit(sys.version_info < (3, 10))
P
if "$python" -W ignore -c 'import detectron2' 2>/dev/null; then
  echo "$python has Detectron2: it is used as it is"
  [ -x "$folder/bin/python" ] || "$python" -m venv --system-site-packages "$folder"
  "$folder/bin/python" -m pip install --quiet --editable '.[detectron2,dev]' --no-build-isolation ||
    "$folder/bin/python" -m pip install --quiet --editable '.[detectron2,dev]'
else
  [ -x "$folder/bin/python" ] || "$python" -m venv "$folder"
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
