#!/bin/sh
# Make .venv in the checkout: torch, the maintained OpenMMLab packages and mmlk itself (editable).
#
#   tools/setup_env.sh base    all of it, mmcv without compiled operators: enough for segmentation, and
#                              with torchvision's operators for Mask and Cascade R-CNN
#   tools/setup_env.sh ops     as base, with all of mmcv's operators compiled (other detectors)
#   tools/setup_env.sh minimum    .venv-minimum instead: the oldest torch and llvmlite of setup.py, test tools
#
# PYTHON names the interpreter (3.10 to 3.12). What is there already is left alone, so a second call
# costs seconds. The compiled mmcv wheel is kept in ${XDG_CACHE_HOME:-~/.cache}/mmlk/wheels, keyed by the
# versions it depends on, and built once per machine.
set -eu

TORCH='torch==2.11.0 torchvision==0.26.0'
# Triton 3.6, which this torch brings, cannot interpret kernels under newer NumPy by itself; the tests repair it.
NUMPY='numpy<2.4'
# Newer setuptools lack pkg_resources, which mmcv's build imports.
BUILD='setuptools==80.9.0 wheel ninja psutil'
MMCV=2.3.6
OPENMMLAB='onedl-mmengine==0.10.12 onedl-mmsegmentation==1.4.2 onedl-mmdetection==3.5.1 onedl-mmpretrain==1.3.6'
# Test tools, and the text packages that mmpretrain and mmseg import without requiring them.
EXTRAS='pytest==9.2.0 pytest-xdist==3.8.0 pytest-randomly==5.1.0 timm==1.0.31 ruff==0.14.5 mypy==2.4.1 ftfy regex tifffile==2026.3.3 fvcore==0.1.5.post20221221 thop==0.1.1.post2209072238 accelerate==1.15.0'
# Compiles the loops of the CPU operators at run time.
JIT='llvmlite==0.50.0'
# The least that setup.py requires; make test-minimum runs on it.
MINIMUM='torch==2.4.0 llvmlite==0.45.0'
# Exports ONNX files and runs them; completes words of the command in a shell.
EXPORT='onnx==1.23.2 onnxscript==0.7.2 onnxruntime==1.32.0 openvino==2026.4.1 argcomplete==3.7.2'
# Draws class activation maps.
ANALYSIS='captum==0.9.0'
# Shows predictions in a browser.
SERVE='starlette==1.10.0 uvicorn==0.54.0'
# Builds the site; newer ones need Python 3.11.
DOCS='furo==2025.12.19 sphinx==8.2.3;python_version>="3.11" myst-parser==5.2.0;python_version>="3.11" sphinx==8.1.3;python_version<"3.11" myst-parser==4.0.1;python_version<"3.11"'
# The last upstream mmengine, kept aside for the tests that inherit configs on it.
UPSTREAM='mmengine==0.10.7'

cd "$(dirname "$0")/.."
stage=${1:-base}
case $stage in base | ops | minimum) ;; *) echo "usage: $0 base|ops|minimum" >&2; exit 2 ;; esac

venv=.venv
python=$venv/bin/python
pip="$python -m pip --disable-pip-version-check"

say() { printf '\033[1m[setup]\033[0m %s\n' "$*"; }

find_python() {
    for candidate in ${PYTHON:-} python3.11 python3.12 python3.10 python3; do
        if "$candidate" -c 'import sys, venv; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' \
            2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo 'No Python 3.10, 3.11 or 3.12 with the venv module found; set PYTHON to one.' >&2
    exit 1
}

install_base() {
    pins=$(printf '%s' "$TORCH $NUMPY $BUILD $MMCV $OPENMMLAB $EXTRAS $JIT $EXPORT $ANALYSIS $SERVE $DOCS $UPSTREAM" | cksum | cut -d' ' -f1)
    stamp=$venv/.mmlk-base-$pins
    [ -e "$stamp" ] && return
    [ -x "$python" ] || "$(find_python)" -m venv "$venv"
    say 'torch and build tools (about 5 GB on disk, minutes on a fast connection)'
    # shellcheck disable=SC2086
    $pip install -q $TORCH "$NUMPY" $BUILD
    say 'OpenMMLab packages'
    # shellcheck disable=SC2086
    $pip install -q $OPENMMLAB $EXTRAS $EXPORT $ANALYSIS $SERVE $DOCS "$JIT" "$NUMPY"
    if [ -n "$(cached_wheel)" ]; then
        $pip install -q "$(cached_wheel)" "$NUMPY"
    else
        $pip install -q "onedl-mmcv==$MMCV" "$NUMPY"
    fi
    use_headless_opencv_if_needed
    $pip install -q --no-deps --target "$venv/upstream" "$UPSTREAM"
    $pip install -q --no-build-isolation --no-deps -e .
    touch "$stamp"
}

# Two OpenCV distributions write the same folder; the one with windows needs libGL, which servers lack.
use_headless_opencv_if_needed() {
    $python -c 'import cv2' 2>/dev/null && return
    version=$($pip show opencv-python-headless | sed -n 's/^Version: //p')
    say "OpenCV cannot load its window libraries here; using opencv-python-headless $version"
    $pip uninstall -q -y opencv-python
    $pip install -q --force-reinstall --no-deps "opencv-python-headless==$version"
}

wheel_folder() {
    $python - "$MMCV" <<'PY'
import os, shutil, sys
import torch
cache = os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache')
device = f'cuda{torch.version.cuda}' if torch.cuda.is_available() and shutil.which('nvcc') else 'cpu'
print(os.path.join(
    cache, 'mmlk', 'wheels',
    f'onedl-mmcv-{sys.argv[1]}-torch-{torch.__version__}-cp{sys.version_info[0]}{sys.version_info[1]}-{device}'))
PY
}

cached_wheel() {
    ls "$(wheel_folder)"/*.whl 2>/dev/null || true
}

install_ops() {
    if $python -c 'import mmcv._ext' 2>/dev/null; then
        return
    fi
    [ -n "$(cached_wheel)" ] || build_ops
    say "installing $(basename "$(cached_wheel)") with compiled operators"
    $pip install -q --force-reinstall --no-deps "$(cached_wheel)"
    $python -c 'import mmcv._ext'
}

build_ops() {
    folder=$(wheel_folder)
    jobs=${MAX_JOBS:-$(nproc)}
    say "compiling mmcv's operators with $jobs jobs: about $((60 / jobs)) minutes on idle cores; once per machine"
    mkdir -p "$(dirname "$folder")"
    work=$(mktemp -d "$folder.XXXXXX")
    trap 'rm -rf "$work"' EXIT INT TERM
    mkdir "$work/tmp" "$work/wheel"
    case $folder in *-cpu) hide_gpus= ;; *) hide_gpus=${CUDA_VISIBLE_DEVICES-unset} ;; esac
    (
        [ "$hide_gpus" = unset ] || export CUDA_VISIBLE_DEVICES="$hide_gpus"
        # Without --no-build-isolation the build cannot see torch and silently leaves the operators out;
        # a wheel from the cache of such a build must not be taken either.
        PATH="$PWD/$venv/bin:$PATH" MAX_JOBS=$jobs TMPDIR="$work/tmp" $pip wheel -q --no-cache-dir \
            --no-build-isolation --no-deps --no-binary onedl-mmcv -w "$work/wheel" "onedl-mmcv==$MMCV"
    ) >"$work/log" 2>&1 &
    build=$!
    started=$(date +%s)
    while kill -0 $build 2>/dev/null; do
        sleep 15
        elapsed=$(($(date +%s) - started))
        if [ $((elapsed % 60)) -lt 15 ]; then
            say "  $((elapsed / 60)) min: $(find "$work/tmp" -name '*.o' | wc -l) of about 78 files compiled"
        fi
    done
    if ! wait $build; then
        tail -n 40 "$work/log" >&2
        cp "$work/log" mmcv-build.log
        echo 'Compiling mmcv failed; the whole log is in mmcv-build.log. A C++ compiler is needed.' >&2
        exit 1
    fi
    # Another process may have finished the same build meanwhile; its wheel is as good.
    mv "$work/wheel" "$folder" 2>/dev/null || true
    rm -rf "$work"
    trap - EXIT INT TERM
}

install_minimum() {
    pins=$(printf '%s' "$MINIMUM $NUMPY $EXTRAS" | cksum | cut -d' ' -f1)
    stamp=.venv-minimum/.mmlk-$pins
    [ -e "$stamp" ] && return
    [ -x .venv-minimum/bin/python ] || "$(find_python)" -m venv .venv-minimum
    say "$MINIMUM in .venv-minimum (about 5 GB on disk)"
    # shellcheck disable=SC2086
    .venv-minimum/bin/python -m pip --disable-pip-version-check install -q $MINIMUM "$NUMPY" \
        $(printf '%s\n' $EXTRAS | grep '^pytest')
    touch "$stamp"
}

if [ "$stage" = minimum ]; then
    install_minimum
    exit
fi
install_base
[ "$stage" = base ] || install_ops
