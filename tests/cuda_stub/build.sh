#!/usr/bin/env bash
# Builds the stub libraries for an onnxruntime-gpu that was made for CUDA 13.
#
# Usage: build.sh OUTDIR
#   PYTHON        the Python in whose environment onnxruntime-gpu is installed, and whose pip fetches the CUDA headers
#   CUDA_INCLUDE  a folder with cuda_runtime_api.h of CUDA 13.0, to fetch nothing
# Needs g++ and binutils. Writes to OUTDIR and to a temporary folder only.
set -euo pipefail
export LC_ALL=C

if [[ $# -ne 1 || $1 == -* ]]; then
  sed -n '2,7s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
out=$1
python=${PYTHON:-python3}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
fail() { echo "build.sh: $*" >&2; exit 1; }

for tool in g++ nm readelf; do command -v $tool >/dev/null || fail "$tool is missing (packages g++ and binutils)"; done

# The provider, the libraries it wants, and the functions it wants from them: "name version" in symbols.
provider=$("$python" -c 'import sysconfig; print(sysconfig.get_path("platlib"))')
provider=$provider/onnxruntime/capi/libonnxruntime_providers_cuda.so
[[ -f $provider ]] || fail "no $provider; is onnxruntime-gpu installed for $python?"
readelf -d "$provider" | sed -n 's/.*(NEEDED).*\[\(libcu.*\)\]/\1/p' >"$work/libraries"
grep -qx 'libcudart\.so\.13' "$work/libraries" ||
  fail "the stub is for libcudart.so.13, this onnxruntime-gpu wants $(grep cudart "$work/libraries" || echo "none")"
nm -D --undefined-only "$provider" | awk '{print $2}' |
  sed -nE 's/^((__cuda|cuda|cublasLt|cublas|curand|cu)[A-Z][A-Za-z0-9_]*)(@+(.*))?$/\1 \4/p' | sort -u >"$work/symbols"

# Headers of the CUDA runtime.
include=${CUDA_INCLUDE:-$work/nvidia/cu13/include}
if [[ -z ${CUDA_INCLUDE:-} ]]; then
  "$python" -m pip --disable-pip-version-check download --quiet --no-deps --only-binary :all: --dest "$work/wheels" \
    'nvidia-cuda-runtime==13.0.*' 'nvidia-cuda-crt==13.0.*' || fail "the CUDA headers could not be fetched"
  for wheel in "$work"/wheels/*.whl; do "$python" -m zipfile -e "$wheel" "$work"; done
fi
[[ -f $include/cuda_runtime_api.h ]] || fail "no cuda_runtime_api.h in $include"

# Functions that stub.cc does not define become no-ops that log their name.
g++ -std=c++17 -O1 -fPIC -Wall -isystem "$include" -c "$here/stub.cc" -o "$work/stub.o"
nm --defined-only "$work/stub.o" | awk '{print $3}' | sort -u >"$work/defined"
cut -d' ' -f1 "$work/symbols" | sort -u | comm -23 - "$work/defined" >"$work/missing"
{
  echo 'extern "C" void fakecuda_called(const char*);'
  sed 's/.*/extern "C" int &() { fakecuda_called("&"); return 0; }/' "$work/missing"
} >"$work/generated.cc"

# The symbol versions that the provider asks for.
awk '{ names[$2 ? $2 : "FAKECUDA"] = names[$2 ? $2 : "FAKECUDA"] " " $1 ";" }
  END { for (version in names) print version " { global:" names[version] " };"; print "FAKECUDA_OWN { local: *; };" }' \
  "$work/symbols" >"$work/versions"

mkdir -p "$out"
g++ -std=c++17 -O1 -fPIC -shared -Wl,--version-script="$work/versions" -Wl,-soname,libfakecuda.so \
  "$work/stub.o" "$work/generated.cc" -o "$out/libfakecuda.so"
while read -r library; do ln -sf libfakecuda.so "$out/$library"; done <"$work/libraries"
echo "$out: $(tr '\n' ' ' <"$work/libraries")"
echo "$(wc -l <"$work/symbols") functions, $(wc -l <"$work/missing") of them generated no-ops"
