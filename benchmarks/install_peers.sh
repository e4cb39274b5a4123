#!/bin/sh
# Installs the peers of the data-loading benchmark, each into a virtual environment of its own:
#     install_peers.sh DESTINATION [PYTHON]
# PYTHON is the one that vitlight is installed for (default: .venv/bin/python); its torch, numpy, simplejpeg and Pillow are shared
# with every peer, so that no peer brings another torch and all are compared on the same libraries. Debian packages
# are installed where apt-get is there and we are root. A peer that can't be installed leaves DESTINATION/PEER/failed.txt
# with the reason, which the benchmark's table repeats.
set -eu
destination=${1:?usage: install_peers.sh DESTINATION [PYTHON]}
python=${2:-$(dirname "$0")/../.venv/bin/python}
shared=$("$python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
mkdir -p "$destination"

if command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then
    apt-get update -qq
    # FFCV is compiled against OpenCV and libturbojpeg; SPDL loads FFmpeg's libraries.
    apt-get install -qq -y --no-install-recommends g++ pkg-config libopencv-dev libturbojpeg0-dev \
        libavcodec59 libavdevice59 libavfilter8 libavformat59 libavutil57 libswscale6 >"$destination/apt.log" 2>&1 ||
        echo "Debian packages: $(tail -n 1 "$destination/apt.log")" >&2
fi

# peer NAME IMPORT REQUIREMENTS...: `--` ends requirements that come with their dependencies; those after it come alone.
peer() {
    name=$1
    imports=$2
    shift 2
    folder=$destination/$name
    rm -rf "$folder"
    "$python" -m venv "$folder"
    own=$("$folder/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
    echo "$shared" >"$own/shared.pth"
    with= alone=
    while [ $# -gt 0 ] && [ "$1" != -- ]; do with="$with $1"; shift; done
    [ $# -eq 0 ] || shift
    alone=$*
    log=$folder/install.log
    if { [ -z "$with" ] || "$folder/bin/pip" install $with; } >"$log" 2>&1 &&
        { [ -z "$alone" ] || "$folder/bin/pip" install --no-deps --no-build-isolation $alone; } >>"$log" 2>&1 &&
        (cd "$(dirname "$0")" && "$folder/bin/python" -c "$imports") >>"$log" 2>&1; then
        echo "$name: installed"
    else
        echo "can't be installed here: $(tail -n 1 "$log")" | tee "$folder/failed.txt" | sed "s/^/$name: /"
    fi
}

# torchvision: the release for the shared torch. Its compiled part needs CUDA and isn't used.
torch=$("$python" -c 'import torch; print(torch.__version__.split("+")[0])')
torchvision=torchvision==$(echo "$torch" | awk -F. '{print "0." $2 + 15 "." $3}')

peer webdataset 'import webdataset; import peers.torchvision_import' -- "$torchvision"
peer dali 'import nvidia.dali' nvidia-dali-cuda130
peer ffcv 'import ffcv.loader' 'numba' 'opencv-python-headless<5' pytorch_pfn_extras fastargs wheel -- 'PyTurboJPEG<2' ffcv==1.0.2
peer spdl 'import spdl.io, spdl.pipeline; spdl.io.utils.get_ffmpeg_versions()' spdl_core spdl_io
peer litdata 'import litdata' boto3 tifffile obstore lightning-utilities -- litdata
peer mosaicml 'import peers.torchvision_import, streaming' boto3 Brotli catalogue python-snappy zstd paramiko transformers \
    azure-storage-blob azure-identity azure-storage-file-datalake google-cloud-storage oci -- "$torchvision" mosaicml-streaming
